"""The contract that training, server and client share.

prediction.proto defines the messages and services, `tensors` converts between numpy arrays and
its tensors, `metadata` reads and writes the description in a model file, and `wire_format` reads
and writes protobuf's bytes by hand.
"""

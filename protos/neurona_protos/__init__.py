"""The contract that training, server and client share.

prediction.proto says what travels, `tensors` turns numpy arrays into its tensors and
back, and `metadata` writes and reads what a model file says about itself.
"""

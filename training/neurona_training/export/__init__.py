"""From a trained network to files that are verified on ONNX Runtime.

onnx_export     torch -> model.onnx, with metadata and string inputs
parity          verifies that the graph gives the same outputs as the network
stepwise        step.onnx: a recurrent network with its state as input and output
quantization    smaller variants: float16 and int8
metadata        what a model file says about itself
examples        an example of each input, for those who try the model
files           files replaced in one step
"""

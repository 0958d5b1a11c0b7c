"""Training, offline: a recipe becomes a model file that a server can serve.

recipes.py          what can be trained: data, architecture, hyper-parameters
data/               the data sets: training, validation and test rows in a caller's units
architectures/      the networks: plain units in, logits or plain values out
fit.py              the training loop
evaluate.py         figures on the test rows
export.py           torch -> ONNX, metadata in, one file put in place whole
parity.py           the proof that the ONNX graph answers as the network does
metadata.py         what the file says about itself
train.py            the command `neurona-train`, which goes through the above in that order
"""

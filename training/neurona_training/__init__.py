"""Training, offline: a recipe becomes a model file that a server can serve.

recipes/            what can be trained: network, data, hyper-parameters (how to add one)
data/               the data sets: training, validation and test rows in a caller's units
data/catalogue/     which data sets there are by name; data/loading.py loads them
architectures/      the networks: plain units in, logits or plain values out
learning.py         what a learner is given and gives back
fit.py              the training loop, the learner of most recipes, with
  augment.py        images moved a little,
  checkpoint.py     what a killed training goes on from,
  device.py         GPU and precision,
  distributed.py    several processes,
  progress.py       and the progress bar
rules.py            learning rules without a gradient: by hand, Rosenblatt, Widrow and Hoff
competition.py      how a neocognitron learns
evaluate.py         figures on the test rows
export.py           torch -> ONNX, metadata in
  strings.py        inputs of strings
  parity.py         the proof that the ONNX graph answers as the network does
  stepwise.py       recurrent networks with their state open, proved too
metadata.py         what the file says about itself
output.py           files put in place whole
arguments.py        the command line of `neurona-train`,
train.py            which goes through the above in that order
long_memory.py      the adding problem in one picture, a command by itself
"""

import os

# ONNX Runtime (1.31, on Linux too) sends events about the process and its models to Microsoft, and
# keeps a file for that in the home folder. Only this stops it, and only before it is loaded:
# disable_telemetry_events() comes too late. Whoever sets the variable decides otherwise.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

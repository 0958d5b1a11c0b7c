"""Networks, one module for each family.

input_layers    scaling of inputs and outputs, colour channels
columns         missing values, dates and text of tables
classic         threshold units and ADALINE, before backpropagation
feedforward     fully connected networks
table_features  columns of a table, scaled and in pieces
network_options what a user may choose about a network
initialisation  first weights by a rule of the user's choice
neocognitron    the neocognitron
convolutional   LeNet-5
vgg, resnet, inception, xception    deep convolutional networks
recurrent       plain recurrent networks, LSTM and GRU
audio           log-mel frames of sound for a recurrent network

A network takes inputs in a caller's units and returns logits (classification) or values in
the targets' unit (regression): scaling is inside it. Names of submodules, parameters and
buffers are the names of tensors in the exported file.
"""

"""Recurrent models: sequences of different lengths, their states, and their steps.

form        what is known of how a model reads sequences, and the names of what a rewrite adds
cellular    chunks of a few steps, between which sequences join and leave
ragged      batches of requests whose sequences have different lengths, or states
merging     which lengths share a batch
cost        the cost of a run by its rows and its steps

analysis    finds by runs how a model reads sequences, with
tensor_axes   along which axes of all tensors the rows and the steps are
graph         the recurrent nodes of a graph
operators     the nodes beside them that handle each step by itself
rewriting     the graph that takes lengths and states
proof         the runs that show that its answers are those of the file
"""

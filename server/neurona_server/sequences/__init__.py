"""Recurrent models: sequences of different lengths, their states, and their steps.

form        what is known of how a model reads sequences, and the names of what a rewrite adds
ragged      batches of requests whose sequences have different lengths, or states
merging     which lengths share a batch
cost        the cost of a run by its rows and its steps
"""

"""Recurrent models: sequences of different lengths, their states, and their steps.

form        what is known of how a model reads sequences, and the names of what a rewrite adds
"""

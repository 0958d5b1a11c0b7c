"""Networks, one file for each family.

A network takes plain units, as a caller sends them, and gives logits (classification) or
plain values (regression): the steps into and out of its own units are inside it.
"""

"""Experiments, each a command by itself."""

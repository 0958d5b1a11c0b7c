"""Experiments on their own, outside the recipes."""

"""The check of a model's file: its first load, in a process that it may crash."""

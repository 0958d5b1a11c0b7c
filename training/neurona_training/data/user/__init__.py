"""A user's own files as a data set."""

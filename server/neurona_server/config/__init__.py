"""The options of neurona-serve.

options  declares every option, with its default, its valid values and its help
parsers  types of values that are written in a form of their own, like HOST:PORT
sources  reads options from flags, the environment and a file
"""

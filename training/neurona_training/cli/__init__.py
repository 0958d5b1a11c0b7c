"""The command neurona-train.

main        entry point: one model, all models, the list or the table
arguments   the command line
pipeline    train, measure, export and report one model
tables      the list of recipes and data sets, and the table of results
"""

"""The command neurona-train.

main        entry point: one model, all models, the list or the table
arguments   the command line
pipeline    train, measure, export and report one model
tuning      --tune: settings searched before the training
seeds       --seeds: the training repeated, for mean and standard deviation
comparison  the subcommand compare: several recipes, the best one exported
results     what trained models reached, over seeds
tables      the list of recipes and data sets, and the table of results
"""

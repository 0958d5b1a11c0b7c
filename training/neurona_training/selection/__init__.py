"""Choosing between trainings by their validation rows, never by the test rows.

comparison      recipes and baselines over seeds and folds, ranked
folds           cross-validation: the training and validation rows divided anew
tuning          settings found by Optuna
search_space    which settings are tried, and from where to where
seeds           one model trained from several seeds, and how its test metrics vary
summary         mean and standard deviation, and their texts
records         results of trainings in a JSON file, which a stopped command reads again
page            the comparison and the tuning as a page with charts

Only `seeds` looks at test rows, after everything has been chosen.
"""

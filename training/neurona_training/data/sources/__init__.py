"""The named data sets, one file for each origin."""

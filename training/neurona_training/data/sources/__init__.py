"""The named data sets, one module for each origin; catalogue.py lists them by name."""

"""Declared comparisons: cells x seeds x budget, measured and compared as the declaration said before the first run."""

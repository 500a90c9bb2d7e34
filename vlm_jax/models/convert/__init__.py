"""Weights of other codebases as ours, and ours as theirs: readers of their files, and a table of names for each layout."""

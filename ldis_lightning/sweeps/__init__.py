"""Ablations: the grid of a config, its runs, and their table."""

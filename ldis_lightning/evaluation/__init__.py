"""Scoring: what is counted of an episode and what a set comes to, with its interval; result rows, published ones."""

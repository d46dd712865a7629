"""`ldis bench step` and `ldis bench infer`: this model against the released script's way, by turns, in one run."""

"""Packing: labelled data sets as their owners distribute them become shards with an index.

`packer.py` is the slot, `engine.py` packs in parallel and continues where it was stopped, `datasets/` has a file for
each data set.
"""

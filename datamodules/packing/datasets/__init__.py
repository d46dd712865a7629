"""A file for each data set or layout: `ldis data pack NAME` runs `NAME.py`, with dashes for underscores."""

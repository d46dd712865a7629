"""`ldis demo`: a page in the browser to try a model with."""

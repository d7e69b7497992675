"""Features: what the body of a model says of a row, computed once where nothing but a classifier's head trains."""

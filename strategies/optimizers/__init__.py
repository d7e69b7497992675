"""Server optimizers: they turn the mean update of a round into a step. One a file; the file's name is its key."""

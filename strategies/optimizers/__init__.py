"""Server optimizers: how the mean update of a round becomes a step. One a file; the file's name is its key."""

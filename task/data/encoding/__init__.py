"""From a row to the tensors that a model takes."""

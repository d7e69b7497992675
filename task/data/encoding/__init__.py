"""Encoding: from rows to the tensors that a model takes."""

"""Arithmetic on named tensors that strategies share; it knows nothing of nodes or messages."""

"""Arithmetic on named tensors that strategies share; it knows neither nodes nor messages."""

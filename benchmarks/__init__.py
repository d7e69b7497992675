"""Measurements: what the project claims, and the code that measures it."""

"""Base classes of several wrappers."""

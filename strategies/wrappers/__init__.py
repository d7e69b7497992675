"""Wrappers for any strategy, one a file: compression and privacy of updates, and robust rules."""

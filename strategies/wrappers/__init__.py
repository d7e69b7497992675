"""Wrappers round any strategy, one a file: compression and privacy of updates."""

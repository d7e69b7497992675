"""Callbacks that observe a run, one per file."""

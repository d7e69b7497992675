"""Partitioners, which divide rows among simulated nodes: one per file."""

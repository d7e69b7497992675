"""Runs side by side: the same split, several seeds, and what nodes would have without the federation."""

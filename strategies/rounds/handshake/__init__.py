"""The start of a run: nodes send their profiles, get the base, and are entered in the node registry."""

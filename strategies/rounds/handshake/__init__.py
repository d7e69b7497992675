"""The start of a run: nodes say what they are, get the base, and are entered in the registry."""

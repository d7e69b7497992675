"""From data that nobody has described to a preset: what it is taken for, what is odd in it, what is written."""

"""The commands of `thistledown`, one per file."""

"""The commands of `thistledown`, one a file."""

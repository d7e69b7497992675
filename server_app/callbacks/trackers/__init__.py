"""Trackers, one a file; the file's name is what the key `trackers` chooses it by."""

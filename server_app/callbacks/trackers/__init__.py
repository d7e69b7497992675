"""Trackers, one per file; the key `trackers` selects them by file name."""

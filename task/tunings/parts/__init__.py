"""Building blocks that several tunings share."""

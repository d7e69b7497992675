"""What several tunings share."""

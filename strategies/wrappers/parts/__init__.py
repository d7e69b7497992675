"""What several wrappers share."""

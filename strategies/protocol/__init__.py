"""What crosses the wire or lies on disk."""

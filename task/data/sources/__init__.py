"""Sources of rows: one per file."""

"""What trains: one tuning per file."""

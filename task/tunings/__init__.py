"""What trains, one tuning a file."""

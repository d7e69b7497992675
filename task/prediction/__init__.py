"""What a tuned model says of rows."""

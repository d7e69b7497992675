"""What is learned: one task kind per file, with model class and head, columns, encoding, loss and metrics."""

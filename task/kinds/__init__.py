"""What can be learned, one task kind a file: model class and head, columns, encoding, loss and metrics."""

"""The server's round loop: draw nodes, send, validate, combine, report, checkpoint."""

"""Who is told of a run, one a file."""

"""Tables as people write them: delimited text, JSON, columns."""

"""Tables from files: decoding, columns, joining, and lists in cells."""

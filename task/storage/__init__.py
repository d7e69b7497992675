"""A node's or server's folder of what may be made again: bases, prepared rows."""

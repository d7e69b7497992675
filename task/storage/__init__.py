"""The store: a folder of a node or server with things that can be made again, such as bases and prepared rows."""

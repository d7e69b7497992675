"""How rows are divided among simulated nodes, one partitioner a file."""

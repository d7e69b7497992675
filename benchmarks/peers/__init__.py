"""Other ways of simulating the same federation, as their own examples are written."""

"""The contract of strategies and wrappers: all that the author of one needs to know."""

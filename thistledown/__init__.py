"""thistledown: the command line of the federation."""

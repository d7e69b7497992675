"""From files to the rows that a node trains on."""

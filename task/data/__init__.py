"""Data: from files to the rows that a node trains on."""

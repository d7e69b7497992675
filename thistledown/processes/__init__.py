"""Processes of Flower that a command starts, watches and ends."""

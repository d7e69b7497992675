"""Preferences: a prompt with a chosen and a rejected answer."""

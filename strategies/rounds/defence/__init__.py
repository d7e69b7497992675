"""Limits on what one bad node can do: row limits, norms, examined updates, and the rollback after a collapse."""

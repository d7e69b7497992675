"""What one bad node cannot do: limits on rows and norms, examined updates, the way back after a collapse."""

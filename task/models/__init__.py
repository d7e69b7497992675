"""The base, and the model that is tuned on it."""

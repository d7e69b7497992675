"""The exchange: what a strategy is, how its state and updates cross the wire, and the round loop."""

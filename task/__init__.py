"""What is learned: configuration, models, tunings, data, local training and metrics."""

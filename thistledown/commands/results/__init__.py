"""What is done with the results of runs: one file for each."""

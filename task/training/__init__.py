"""The local trainer, its batches and rates; evaluation."""

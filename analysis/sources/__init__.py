"""Models, data sets and checkpoints by name."""

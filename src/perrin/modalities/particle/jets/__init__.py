"""Jets: sets of at most 30 particles, their files, data, metrics and model."""

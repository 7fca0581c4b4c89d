"""Distances between samples, and classifiers between them: what jets and showers share. NumPy, SciPy, torch."""

"""Executing work: files that are whole or absent, records of what was run, signals."""

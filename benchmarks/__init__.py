"""Benchmarks of embstore, and of the systems beside it: see README.md."""

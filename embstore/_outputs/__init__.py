"""Rows as something else: vectors, neighbors, tables, tensors, plots."""

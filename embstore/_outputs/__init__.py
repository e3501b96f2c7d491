"""Rows as vectors, neighbours, tables, tensors and plots."""

"""Results: goals, tables, charts, and the files that keep every figure."""

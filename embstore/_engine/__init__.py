"""The engine: the store's format, its files, and reading and writing rows."""

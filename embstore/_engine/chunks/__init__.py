"""One chunk file, and one record file."""

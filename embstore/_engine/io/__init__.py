"""Files, locks, maps and threads. This package does not interpret the content of files."""

"""Files, locks, maps and threads. What is in the files is no concern of this room."""

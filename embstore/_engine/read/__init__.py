"""Reading the rows of a commit."""

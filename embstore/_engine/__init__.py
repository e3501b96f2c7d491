"""What every room stands on: the store's format, its files, and how rows are read from them and written to them."""

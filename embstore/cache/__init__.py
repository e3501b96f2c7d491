"""A folder of stores, one store for each config. The public names are exported by `embstore`."""

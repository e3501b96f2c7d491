"""Many stores under one folder, one a config. Their public names are exported by `embstore` itself."""

"""The store and its views. Their public names are exported by `embstore` itself."""

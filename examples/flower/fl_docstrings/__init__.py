"""A Flower app: a linear head on frozen MiniLM, which each client's texts go through once."""

"""A Flower app: a linear head on frozen MiniLM, which encodes each client's texts once."""

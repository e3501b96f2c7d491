"""Federated learning with a store and without: each program measures one framework."""

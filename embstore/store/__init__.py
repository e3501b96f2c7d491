"""The store and its views."""

"""From samples to rows in a store."""

"""Many stores under one folder, one a config."""

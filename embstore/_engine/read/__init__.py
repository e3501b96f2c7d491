"""From a commit to rows."""

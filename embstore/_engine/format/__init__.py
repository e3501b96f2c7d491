"""The format, pure: what `docs/format.md` says, as data. No I/O."""

"""The format of `docs/format.md` as data. Pure: no I/O."""

"""The repr of a store, as text and in a notebook: path, rows, size, classes, fields, columns and config."""

from __future__ import annotations

from collections.abc import Iterable

from embstore._engine.format.config import as_words
from embstore._engine.read.snapshot import Snapshot
from embstore._engine.sizes import size
from embstore.encoders.defaults import notable_settings

_SHOWN = 8


def describe(snapshot: Snapshot, *, writable: bool) -> list[tuple[str, str]]:
    """Return the description of a store as lines of (name, text)."""
    record, names = snapshot.record, snapshot.classes
    nbytes = sum(record.arrays[name].row_nbytes * record.arrays[name].length for name in record.fields)
    dead = f" and {record.dead:,} deleted" if record.dead else ""
    listed = f": {', '.join(names[:_SHOWN])}{', …' if len(names) > _SHOWN else ''}" if names else ""
    config = as_words(notable_settings(record.config))
    return [
        ("store", f"{snapshot.folder.path} ({'writable' if writable else 'read-only'})"),
        ("rows", f"{record.rows - record.dead:,}{dead}, {size(nbytes)}"),
        ("classes", f"{len(names):,}{listed}"),
        *(
            ("field", f"{name} {spec.dtype} {('length', *spec.shape) if spec.ragged else spec.shape}")
            for name, spec in record.fields.items()
        ),
        *(("column", f"{name} {spec.dtype}") for name, spec in record.columns.items()),
        ("config", f"{record.fingerprint[:16]} {config}"),
    ]


def as_text(lines: Iterable[tuple[str, str]]) -> str:
    """Return the lines as text."""
    return "\n".join(f"{name + ':':<9}{text}" for name, text in lines)

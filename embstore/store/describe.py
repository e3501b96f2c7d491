"""How a store looks, as text and in a notebook: what it is, how many rows, which classes, how big, which config."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TYPE_CHECKING

from embstore._engine.sizes import size

if TYPE_CHECKING:
    from embstore.store.embedding_store import EmbeddingStore

__all__ = ["as_html", "as_text", "describe"]

_SHOWN = 8


def describe(store: EmbeddingStore) -> list[tuple[str, str]]:
    """Say what a store is, in lines of (name, text)."""
    record = store.snapshot.record
    names = store.classes
    dead = f" and {record.dead:,} deleted" if record.dead else ""
    config = ", ".join(f"{name}={value!r}" for name, value in store.config.items())
    return [
        ("store", f"{store.path} ({'writable' if store.writable else 'read-only'})"),
        ("rows", f"{len(store):,}{dead}, {size(store.nbytes)}"),
        ("classes", f"{len(names):,}: {', '.join(names[:_SHOWN])}{', …' if len(names) > _SHOWN else ''}"),
        *(
            ("field", f"{name} {spec.dtype} {('length', *spec.shape) if spec.ragged else spec.shape}")
            for name, spec in record.fields.items()
        ),
        *(("column", f"{name} {spec.dtype}") for name, spec in record.columns.items()),
        ("config", f"{record.fingerprint[:16]} {config}"),
    ]


def as_text(lines: Iterable[tuple[str, str]]) -> str:
    """Lay lines out as text."""
    return "\n".join(f"{name + ':':<9}{text}" for name, text in lines)


def as_html(lines: Iterable[tuple[str, str]]) -> str:
    """Lay lines out as a table."""
    left = "style='text-align:left'"
    rows = (f"<tr><th {left}>{html.escape(n)}</th><td {left}>{html.escape(t)}</td></tr>" for n, t in lines)
    return f"<table>{''.join(rows)}</table>"

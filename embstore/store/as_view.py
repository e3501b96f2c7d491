"""A view from the first argument of a function over views: a view, or a store for all of its rows."""

from __future__ import annotations

from os import PathLike, fspath

from embstore.store.embedding_store import EmbeddingStore, View


def as_view(given: View | EmbeddingStore) -> View:
    """Return a view as it is; select all live rows of a store.

    Raises
    ------
    TypeError
        Neither. The message says how to open a path.
    """
    if isinstance(given, View):
        return given
    if isinstance(given, EmbeddingStore):
        return given.select()
    if isinstance(given, str | PathLike):
        path = fspath(given)
        raise TypeError(f"expected a View or an EmbeddingStore, found a path: pass embstore.open({path!r}).select()")
    raise TypeError(f"expected a View or an EmbeddingStore, found {type(given).__name__}: pass store.select()")

"""Turn the first argument of a function over views into a view."""

from __future__ import annotations

from os import PathLike, fspath

from embstore.store.embedding_store import EmbeddingStore, View


def as_view(given: View | EmbeddingStore) -> View:
    """Return a view unchanged. For a store, return the view of all its live rows.

    Raises
    ------
    TypeError
        `given` is neither. For a path, the message shows how to open it.
    """
    if isinstance(given, View):
        return given
    if isinstance(given, EmbeddingStore):
        return given.select()
    if isinstance(given, str | PathLike):
        path = fspath(given)
        raise TypeError(f"expected a View or an EmbeddingStore, found a path: pass embstore.open({path!r}).select()")
    raise TypeError(f"expected a View or an EmbeddingStore, found {type(given).__name__}: pass store.select()")

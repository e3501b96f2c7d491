"""The cache of MTEB: a backend of `CachedEmbeddingWrapper` on rows of stores, by content. Does not import mteb."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embstore.pipeline.by_content import RowsByContent

_PARTS: Final = ("text", "image", "audio", "video")
"""The parts of an item that MTEB hashes as its content. Videos have no digest here, and raise TypeError."""


class VectorCache:
    """A cache backend: ``CachedEmbeddingWrapper(model, "cache/minilm", VectorCache)``.

    MTEB gives each task, prompt type and experiment a folder of its own below the folder of the model. There the
    vectors are in a store.

    Parameters
    ----------
    directory : path_like
    config : mapping, optional
        Facts about the model: ``functools.partial(VectorCache, config={"model": "all-MiniLM-L6-v2"})``.
    """

    def __init__(self, directory: str | os.PathLike[str], *, config: Mapping[str, Any] | None = None) -> None:
        self.directory = Path(directory)
        self._rows = RowsByContent(self.directory, {**(config or {}), "mteb": self.directory.name})

    def add(self, items: Sequence[Mapping[str, Any]], vectors: Any) -> None:
        """Store the vectors of items, ``(n, dim)``, in one commit. An item that has one keeps it."""
        rows = np.atleast_2d(np.asarray(vectors))
        self._rows.put([_content(item) for item in items], rows, dtype=rows.dtype.name)

    def get_vector(self, item: Mapping[str, Any]) -> NDArray[Any] | None:
        """Return the vector of an item, or None."""
        values, found = self._rows.get([_content(item)])
        return values[0] if found[0] else None

    def __contains__(self, item: Mapping[str, Any]) -> bool:
        return bool(self._rows.get([_content(item)])[1][0])

    def save(self) -> None:
        """Do nothing: `add` stores."""

    def load(self) -> None:
        """Do nothing: the store is opened when an item is looked up."""

    def close(self) -> None:
        """Close the store. A later call opens it again."""
        self._rows.close()


def _content(item: Mapping[str, Any]) -> Any:
    """Return the content of an item: its text, or all its parts."""
    parts = {name: item[name] for name in _PARTS if item.get(name) is not None}
    if not parts:
        raise ValueError(f"expected an item with {', '.join(_PARTS)}, found {', '.join(item)}")
    return parts["text"] if [*parts] == ["text"] else parts

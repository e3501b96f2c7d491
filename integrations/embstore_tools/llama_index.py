"""The cache of LlamaIndex: `embeddings_cache` of an embedding model on rows of a store, by their texts."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Mapping
from typing import Any, Final

from llama_index.core.storage.kvstore.types import BaseKVStore

from embstore.cache.cache import Cache
from embstore.pipeline.by_content import RowsByContent

_INTERVAL: Final = 2.0
"""Seconds between commits. LlamaIndex hands over one vector at a time, and a commit for each takes 10 ms."""

_Pending = dict[str, list[float]]


class VectorCache(BaseKVStore):  # type: ignore[misc] # LlamaIndex's types are not read
    """A store of LlamaIndex from texts to vectors: ``HuggingFaceEmbedding(…, embeddings_cache=VectorCache(…))``.

    Vectors are committed every two seconds, by `persist`, and when the object or the process ends. LlamaIndex looks up
    queries and texts in one cache: a model with a prompt for queries needs one model object, and cache, for each.

    Parameters
    ----------
    cache : Cache or path_like
    config : mapping
        All that the vectors depend on: the model, its version, its prompts.
    dtype : {"float32", "float64"}
        Stored dtype. Vectors of local models are float32 as they come.
    """

    def __init__(
        self, cache: Cache | str | os.PathLike[str], config: Mapping[str, Any], *, dtype: str = "float32"
    ) -> None:
        self._rows, self._dtype = RowsByContent(cache, config), dtype
        self._pending: _Pending = {}
        self._next = time.monotonic() + _INTERVAL
        weakref.finalize(self, _commit, self._rows, self._pending, dtype)

    def persist(self) -> None:
        """Commit the vectors that are not stored yet."""
        _commit(self._rows, self._pending, self._dtype)
        self._next = time.monotonic() + _INTERVAL

    def put(self, key: str, val: dict[str, Any], collection: str = "embeddings") -> None:
        """Keep the vector of a text, which is the only value of `val`."""
        (self._pending[key],) = val.values()
        if time.monotonic() >= self._next:
            self.persist()

    def get(self, key: str, collection: str = "embeddings") -> dict[str, Any] | None:
        """Return the vector of a text as the value of a dictionary, or None."""
        if key in self._pending:
            return {"embedding": self._pending[key]}
        values, found = self._rows.get([key])
        return {"embedding": values[0].tolist()} if found[0] else None

    def get_all(self, collection: str = "embeddings") -> dict[str, dict[str, Any]]:
        """Raise NotImplementedError: the store has digests of texts, not the texts."""
        raise NotImplementedError("the store has digests of texts, not the texts")

    def delete(self, key: str, collection: str = "embeddings") -> bool:
        """Delete the vector of a text. Return whether there was one."""
        pending = self._pending.pop(key, None) is not None
        return bool(self._rows.delete([key])) or pending

    async def aput(self, key: str, val: dict[str, Any], collection: str = "embeddings") -> None:
        """Do the same as `put`."""
        self.put(key, val, collection)

    async def aget(self, key: str, collection: str = "embeddings") -> dict[str, Any] | None:
        """Do the same as `get`."""
        return self.get(key, collection)

    async def aget_all(self, collection: str = "embeddings") -> dict[str, dict[str, Any]]:
        """Do the same as `get_all`."""
        return self.get_all(collection)

    async def adelete(self, key: str, collection: str = "embeddings") -> bool:
        """Do the same as `delete`."""
        return self.delete(key, collection)


def _commit(rows: RowsByContent, pending: _Pending, dtype: str) -> None:
    """Store pending vectors, and forget them once they are stored."""
    keys = list(pending)
    rows.put(keys, [pending[key] for key in keys], dtype=dtype)
    for key in keys:
        del pending[key]

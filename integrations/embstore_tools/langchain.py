"""The cache of LangChain: `CacheBackedEmbeddings` on rows of a store, by their texts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from langchain_core.stores import BaseStore

from embstore.cache.cache import Cache
from embstore.pipeline.by_content import RowsByContent


class VectorCache(BaseStore[str, list[float]]):  # type: ignore[misc] # LangChain's types are not read
    """A store of LangChain from texts to vectors: ``CacheBackedEmbeddings(embedder, VectorCache("cache", config))``.

    Queries need a second one, with another config, if the embedder treats them in another way:
    ``query_embedding_store=``.

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

    def mget(self, keys: Sequence[str]) -> list[list[float] | None]:
        """Return the vector of each text, or None."""
        values, found = self._rows.get(keys)
        stored = iter(values.tolist())
        return [next(stored) if there else None for there in found.tolist()]

    def mset(self, key_value_pairs: Sequence[tuple[str, list[float]]]) -> None:
        """Store the vectors of texts in one commit. A text that has one keeps it."""
        self._rows.put([key for key, _ in key_value_pairs], [value for _, value in key_value_pairs], dtype=self._dtype)

    def mdelete(self, keys: Sequence[str]) -> None:
        """Delete the vectors of texts."""
        self._rows.delete(keys)

    def yield_keys(self, *, prefix: str | None = None) -> Iterator[str]:
        """Raise NotImplementedError: the store has digests of texts, not the texts."""
        raise NotImplementedError("the store has digests of texts, not the texts")

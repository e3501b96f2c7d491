"""RowsByContent: rows of content without ids. The key of a row is the digest of its content.

scikit-learn, sentence-transformers, LangChain, LlamaIndex and MTEB hand over texts, not ids. Their adapters keep rows
here. Equal content has one row, and no row becomes stale: changed content has another key.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.config import Config
from embstore._engine.format.keys import Key
from embstore._engine.format.record import FieldSpec
from embstore._engine.progress import Progress
from embstore.cache.cache import Cache
from embstore.encoders.base import Encoder, as_encoder
from embstore.errors import NotAStoreError, SampleError, StoreReplacedError
from embstore.pipeline.embed import embed
from embstore.sources.base import AnySample, digest_of, file_sample
from embstore.sources.items import LoadedSample
from embstore.store.embedding_store import EmbeddingStore

DATASET: Final = "by content"
"""The ``dataset`` in the config of such stores."""


@dataclass(frozen=True, slots=True)
class _Contents:
    """A source of distinct content."""

    samples: Sequence[AnySample]
    name: str = DATASET

    def __iter__(self) -> Iterator[AnySample]:
        return iter(self.samples)


class RowsByContent:
    """The rows of a config in a cache, by content. The store is made with its first rows, and stays open.

    Parameters
    ----------
    cache : Cache or path_like
    config : mapping
        All that the values depend on.
    field : str, optional
        The field to read and write.
    """

    def __init__(
        self, cache: Cache | str | os.PathLike[str], config: Mapping[str, Any], field: str | None = None
    ) -> None:
        self.cache = cache if isinstance(cache, Cache) else Cache(cache)
        self.config = Config(config, dataset=DATASET)
        self.field = field
        self._store: EmbeddingStore | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        config = {name: value for name, value in self.config.items() if name != "dataset"}
        return type(self), (self.cache, config, self.field)

    def close(self) -> None:
        """Close the store. A later call opens it again."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def get(self, contents: Sequence[Any]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return the stored rows of contents, in their order, and which contents have one.

        Returns
        -------
        values : ndarray, (number of stored, *shape)
        found : ndarray, (n,) bool
        """
        return self._values(self._find([key_of(content) for content in contents]))

    def put(self, contents: Sequence[Any], values: Any, *, dtype: str = "float32") -> None:
        """Store rows of contents that have none, in one commit.

        Parameters
        ----------
        contents : sequence
        values : array_like, (n, *shape)
        dtype : str
            Dtype of a new field.
        """
        rows = np.asarray(values)
        keys = [key_of(content) for content in contents]
        first = {key: place for place, key in reversed([*enumerate(keys)])}
        if not first:
            return
        fields = {self.field or "embedding": FieldSpec(shape=rows.shape[1:], dtype=dtype)}
        with self.cache.open(self.config, "a", fields=fields) as store:
            store.append([*first], rows[[*first.values()]], if_exists="skip", casting="same_kind")

    def delete(self, contents: Sequence[Any]) -> int:
        """Delete the rows of contents. Return their number."""
        keys = [key_of(content) for content in contents]
        there = [key for key, row in zip(keys, self._find(keys).tolist(), strict=True) if row >= 0]
        if there:
            with self.cache.open(self.config, "r+") as store:
                store.delete(there)
            self._newest()
        return len(there)

    def encoded(
        self,
        contents: Sequence[Any],
        encoder: Encoder,
        *,
        batch_size: int = 32,
        progress: Progress = None,
        canaries: int = 0,
    ) -> NDArray[Any]:
        """Return the rows of contents, ``(n, *shape)``. Each distinct content that has no row is encoded once.

        Parameters
        ----------
        contents : sequence
            Texts, paths, bytes, arrays, images. Text is a path for an encoder of sound or images.
        encoder : Encoder
            Of the config. Its `encode` gets `batch_size` contents at a time.
        batch_size, progress, canaries
            As for `embed`.

        Raises
        ------
        SampleError
            Content can't be read or encoded. The rows of all other contents are stored.
        """
        files = as_encoder(encoder).modality in ("audio", "image")
        contents = [Path(one) if files and isinstance(one, str) else one for one in contents]
        keys = [key_of(content) for content in contents]
        rows = self._find(keys)
        if (rows < 0).any():
            missing = {keys[place]: contents[place] for place in np.flatnonzero(rows < 0).tolist()}
            source = _Contents([_sample(key, content) for key, content in missing.items()])
            result = embed(
                source,
                encoder,
                self.cache,
                batch_size=batch_size,
                vanished="ignore",
                progress=progress,
                canaries=canaries,
            )
            if result.failed:
                more = f"; {len(result.failed) - 1:,} more failed" if len(result.failed) > 1 else ""
                raise SampleError(None, f"{result.failed[0].where}: {result.failed[0].reason}{more}")
            rows = self._find(keys)
        return self._values(rows)[0]

    def _values(self, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        found = rows >= 0
        if self._store is None or not found.any():
            return np.empty((0,), np.float32), found
        values: NDArray[Any] = self._store.take(rows[found], self.field)
        return values, found

    def _find(self, keys: Sequence[Key]) -> NDArray[np.int64]:
        """Return the row of each key, or -1. The newest commit is looked at if the open one lacks a key."""
        rows = np.full(len(keys), -1, np.int64)
        if self._store is not None:
            rows = self._store.find(keys)
        if len(rows) and rows.min() < 0 and self._newest():
            assert self._store is not None
            rows = self._store.find(keys)
        return rows

    def _newest(self) -> bool:
        """Move to the newest commit. Return False if the store is absent or has not changed."""
        if self._store is not None:
            try:
                return self._store.refresh()
            except (NotAStoreError, StoreReplacedError):
                self._store = None
        if self.cache.has_store(self.cache.path_of(self.config)):
            self._store = self.cache.open(self.config)
        return self._store is not None


def key_of(content: Any) -> Key:
    """Return the key of content: its kind and its digest, so that a text and the same bytes differ.

    Raises
    ------
    SampleError
        A file can't be read.
    TypeError
        This type of content has no digest.

    Examples
    --------
    >>> key_of("It purrs.").file_id == key_of(b"It purrs.").file_id
    False
    """
    if isinstance(content, str):
        try:
            return Key(f"text-{digest_of(content)}")
        except UnicodeEncodeError as error:
            raise SampleError(None, f"{content!r:.200} is not valid Unicode text") from error
    kind = "bytes" if isinstance(content, bytes | Path) else "value"
    return Key(f"{kind}-{_sample(Key('content'), content).current_digest()}")


def _sample(key: Key, content: Any) -> AnySample:
    if isinstance(content, Path):
        return file_sample(key, content)
    return LoadedSample(key, f"{content!r:.80}", lambda: content)

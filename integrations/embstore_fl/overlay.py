"""`audio_embs`: a node's embeddings by key, read lazily from stores, and written in memory only."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import PurePath
from typing import Any, Final, Literal

from embstore import EmbeddingStore, FieldSpec
from embstore.errors import MissingKeysError, StoreChangedError, StoreReplacedError
from embstore_fl.errors import ForeignKeysError
from embstore_fl.stores import OpenStore, open_shared

_ATTEMPTS: Final = 20


class StoreLayer:
    """Rows of a store by key. Stays valid through erases and compactions of the store.

    The pickle holds the store's path and the keys. A worker process opens its own reader.

    Parameters
    ----------
    path : Path
    field : str
    keys : sequence of str
        Keys that are not stored are skipped.
    """

    def __init__(self, path: PurePath, field: str, keys: Sequence[str]) -> None:
        self.path = path
        self.field = field
        self._keys = keys
        self._shared: OpenStore | None = None
        self._rows: dict[str, int] = {}
        self._state: object = None

    @property
    def rows(self) -> dict[str, int]:
        """Row number of each stored key."""
        return self._followed()[1]

    @property
    def store(self) -> EmbeddingStore:
        """The shared reader of the store in this process."""
        return self._followed()[0].store

    @property
    def spec(self) -> FieldSpec:
        """The stored field."""
        return self.store.fields[self.field]

    def _followed(self) -> tuple[OpenStore, dict[str, int]]:
        shared = self._shared
        if shared is None:
            shared = self._shared = open_shared(self.path)
        if shared.state != self._state:
            found = shared.store.find(self._keys).tolist()
            self._rows = {key: row for key, row in zip(self._keys, found, strict=True) if row >= 0}
            self._state = shared.state
        return shared, self._rows

    def get(self, key: str) -> Any:
        """Return a row as a tensor over the store's map (see `embstore_fl.stores.Rows`), or None."""
        for _ in range(_ATTEMPTS):
            shared, rows = self._followed()
            row = rows.get(key)
            if row is None:
                return None
            try:
                return shared.rows(self.field, least=row)[row]
            except (StoreChangedError, StoreReplacedError):  # an erase or a compaction by another process
                shared.store.refresh()
        raise StoreReplacedError(self.path, f"it was replaced {_ATTEMPTS} times while a row was read")

    def __contains__(self, key: object) -> bool:
        return key in self.rows

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "field": self.field, "_keys": self._keys}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], state["field"], state["_keys"])  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"<StoreLayer of {len(self._keys):,} keys in {str(self.path)!r}>"


Layer = StoreLayer | Mapping[str, Any]
"""A place with embeddings by key: a store, or a mapping in memory."""


Tokens = Literal["any", "all", "cls"]
"""Rows that a node uses: any, only whole sequences, or only the first token (CLS) of each row."""


def is_cls(shape: Sequence[int]) -> bool:
    """Return whether a row has this shape because it holds the first token of a sequence alone."""
    return len(shape) == 2 and shape[0] == 1


class AudioEmbeddings(MutableMapping[str, Any]):
    """Embeddings of a node's own samples, by key.

    Reading is lazy: a row of a store becomes a tensor over its map on access. Assignment, deletion and `clear` change
    this mapping only, and never a store. Only the node's own keys are read from stores. Other keys exist here only if
    they were assigned.

    Parameters
    ----------
    own : sequence of str, optional
        The node's keys.
    client : optional
        The node's name, for errors.

    Attributes
    ----------
    layers : tuple of StoreLayer or mapping
        Places that are searched in this order, after `written`.
    written : dict
        Assigned embeddings.
    tokens : {"any", "all", "cls"}
        With "all", layers' rows of the first token alone are not used. With "cls", each embedding is cut to its first
        token.

    Examples
    --------
    >>> embs = AudioEmbeddings(["a:dog", "b:dog"])
    >>> embs.layers = ({"a:dog": 1.0, "x:cat": 2.0},)
    >>> embs["b:dog"] = 3.0
    >>> dict(embs), "x:cat" in embs
    ({'a:dog': 1.0, 'b:dog': 3.0}, False)
    >>> del embs["a:dog"]
    >>> list(embs)
    ['b:dog']
    """

    def __init__(self, own: Sequence[str] = (), *, client: object = None) -> None:
        self.own: dict[str, None] = dict.fromkeys(own)
        self.client = client
        self.layers: tuple[Layer, ...] = ()
        self.written: dict[str, Any] = {}
        self.tokens: Tokens = "any"
        self._hidden: set[str] = set()

    def find(self, key: object) -> Any:
        """Return the embedding of a key. None if it is missing, or the key is not the node's own."""
        if key in self.written:
            return self._cut(self.written[key])
        if key not in self.own or key in self._hidden:
            return None
        for layer in self.layers:
            found = layer.get(str(key))
            if found is not None and self._usable(found):
                return self._cut(found)
        return None

    def _usable(self, row: Any) -> bool:
        """Return whether a row, or rows of a field, are used."""
        return self.tokens != "all" or not is_cls(getattr(row, "shape", ()))

    def _cut(self, row: Any) -> Any:
        return row[:1] if self.tokens == "cls" and len(getattr(row, "shape", ())) == 2 else row

    def _lacking(self, layer: Layer, keys: Iterable[str]) -> list[str]:
        """Return the keys without an embedding in a layer. A store's row numbers are looked up once."""
        if isinstance(layer, StoreLayer):
            rows = layer.rows if self._usable(layer.spec) else {}
            return [key for key in keys if key not in rows]
        return [key for key in keys if key not in layer or not self._usable(layer[key])]

    def __getitem__(self, key: str) -> Any:
        """Return the embedding of a key.

        Raises
        ------
        ForeignKeysError
            The key is not the node's own.
        MissingKeysError
            The key is the node's own and has no embedding yet.
        """
        found = self.find(key)
        if found is None:
            if key not in self.own:
                raise ForeignKeysError(self.client, [str(key)])
            raise MissingKeysError([key], what="among the node's embeddings yet")
        return found

    def get(self, key: str, default: Any = None) -> Any:
        """Return the embedding of a key, or the default."""
        found = self.find(key)
        return default if found is None else found

    def __contains__(self, key: object) -> bool:
        if key in self.written:
            return True
        if key not in self.own or key in self._hidden:
            return False
        return any(not self._lacking(layer, [str(key)]) for layer in self.layers)

    def __setitem__(self, key: str, value: Any) -> None:
        self.written[key] = value
        self._hidden.discard(key)

    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise MissingKeysError([key], what="among the node's embeddings")
        self.written.pop(key, None)
        self._hidden.add(key)

    def clear(self) -> None:
        """Remove all embeddings from this mapping. Stores are not changed."""
        self.written.clear()
        self._hidden.clear()
        self.layers = ()

    def become(self, values: Mapping[str, Any] | None) -> None:
        """Replace all embeddings by those of another mapping, for the node's own keys. Nothing is copied."""
        self.clear()
        self.layers = _layers_of(values)

    def also(self, values: Mapping[str, Any] | None) -> None:
        """Add embeddings of another mapping, for the node's own keys without an embedding."""
        left = self.missing
        self.layers += tuple(layer for layer in _layers_of(values) if any(key in layer for key in left))

    def load(self, layers: Sequence[Layer]) -> None:
        """Replace the layers. Assigned embeddings stay, and deletions are undone."""
        self.layers = tuple(layers)
        self._hidden.clear()

    def forget(self, keys: Collection[str]) -> None:
        """Remove assigned embeddings of these keys, which a store has."""
        for key in keys:
            self.written.pop(key, None)

    def origins(self) -> Iterator[tuple[Layer, list[str]]]:
        """Yield each layer with the node's keys that are read from it."""
        left = [key for key in self.own if key not in self.written and key not in self._hidden]
        for layer in self.layers:
            lacking = dict.fromkeys(self._lacking(layer, left))
            yield layer, [key for key in left if key not in lacking]
            left = list(lacking)

    @property
    def missing(self) -> list[str]:
        """The node's keys without an embedding."""
        left = [key for key in self.own if key not in self.written]
        if self._hidden:
            return [key for key in left if key not in self]
        for layer in self.layers:
            left = self._lacking(layer, left) if left else left
        return left

    def __iter__(self) -> Iterator[str]:
        lacking = set(self.missing)
        yield from (key for key in self.own if key not in lacking)
        yield from (key for key in self.written if key not in self.own)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return any(True for _ in self)

    def __repr__(self) -> str:
        return f"<AudioEmbeddings: {len(self):,} of {len(self.own):,}, {len(self.written):,} of them in memory>"


def _layers_of(values: Mapping[str, Any] | None) -> tuple[Layer, ...]:
    """Return the layers of a mapping. Later changes of an `AudioEmbeddings` do not affect them."""
    if isinstance(values, AudioEmbeddings):
        return (*((dict(values.written),) if values.written else ()), *values.layers)
    return (values,) if values else ()

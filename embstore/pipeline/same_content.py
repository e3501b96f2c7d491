"""The rows of a store by the digest of their content: those to copy to the key of a sample, in place of encoding it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from embstore._engine.format.keys import Key
from embstore._engine.format.source_columns import is_computed
from embstore._engine.read.snapshot import Snapshot
from embstore._engine.write.check_input import read_keys
from embstore.pipeline.decode_ahead import Decoded
from embstore.store.embedding_store import EmbeddingStore
from embstore.store.same_content import digests_in_chunks


@dataclass(frozen=True, slots=True)
class Copy:
    """A sample that gets a copy of a stored row, or of the row that this run makes of another key (`row` is -1)."""

    done: Decoded
    row: int
    source: str | None  # None until the keys of many rows are read at once
    moves: bool = False


@dataclass(slots=True)
class SameContent:
    """Chooses the row to copy for each sample of a run.

    A row moves if its key is gone from the source, and if it is the one candidate of its content: the one with the
    file_id of the sample, else the only one, unless another wanted sample has its file_id.

    Attributes
    ----------
    stored, again : list of Copy
        Copies of stored rows, and of rows that this run makes.
    refused : set of str
        Keys whose copy was not made, because another process changed its row.
    """

    stored: list[Copy] = field(default_factory=list)
    again: list[Copy] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    _hashes: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    _rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    _snapshot: Snapshot | None = None
    _gone: dict[int, tuple[str, str]] = field(default_factory=dict)  # key and file_id of each row that may move
    _ids: frozenset[str] = frozenset()
    _moved: set[int] = field(default_factory=set)
    _made: dict[int, str] = field(default_factory=dict)  # keys of this run, by the hash of their digest

    @classmethod
    def of(cls, store: EmbeddingStore, wanted: Iterable[str], gone: list[str]) -> SameContent:
        """Return the content of a store's rows.

        Parameters
        ----------
        store : EmbeddingStore
        wanted : iterable of str
            Keys of the samples to encode.
        gone : list of str
            Stored keys whose rows may move.
        """
        snapshot = store.snapshot
        # A hash of 64 bits takes a tenth of the memory of a digest. The whole digest is compared under the lock.
        chunks = [np.fromiter(map(hash, chunk), np.int64, len(chunk)) for chunk in digests_in_chunks(snapshot)]
        hashes = np.concatenate([np.empty(0, np.int64), *chunks])
        rows = snapshot.live_rows if len(hashes) else np.empty(0, np.int64)
        hashes = hashes[rows]
        order = np.argsort(hashes)
        keys, left = read_keys(gone), store.find(gone).tolist()
        return cls(
            _hashes=hashes[order],
            _rows=rows[order],
            _snapshot=snapshot,
            _gone={row: (key, own) for row, key, own in zip(left, keys.texts, keys.file_ids, strict=True) if row >= 0},
            _ids=frozenset(read_keys(wanted).file_ids) if gone else frozenset(),
        )

    def known(self, key: str, digest: str) -> bool:
        """Return whether a stored row has this content, so that the sample need not be decoded."""
        return key not in self.refused and is_computed(digest) and bool(self._found(digest))

    def copies(self, done: Decoded) -> bool:
        """Note the copy that a sample gets. Return False if the sample is to be encoded."""
        if not is_computed(done.digest):
            return False
        code, rows = hash(done.digest), self._found(done.digest)
        if done.key in self.refused or not (rows or code in self._made):
            self._made[code] = done.key
            return False
        row = self._moving(done.key, rows)
        if row is not None:
            self.stored.append(Copy(done, row, self._gone.pop(row)[0], moves=True))
            self._moved.add(row)
            self._made[code] = done.key
        elif rows:
            self.stored.append(Copy(done, rows[0], None))
        else:
            self.again.append(Copy(done, -1, self._made[code]))
        return True

    def _found(self, digest: str) -> list[int]:
        first, last = (np.searchsorted(self._hashes, hash(digest), side) for side in ("left", "right"))
        return [row for row in sorted(self._rows[first:last].tolist()) if row not in self._moved]

    def _moving(self, key: str, rows: list[int]) -> int | None:
        """Return the row that moves to a key, or None if there is no one candidate."""
        candidates = {row: self._gone[row][1] for row in rows if row in self._gone}
        file_id = Key.parse(key).file_id
        alike = [row for row, own in candidates.items() if own == file_id]
        if alike or len(candidates) != 1:
            return alike[0] if len(alike) == 1 else None
        ((row, own),) = candidates.items()
        return None if own in self._ids else row

    def sources(self, copies: list[Copy]) -> list[str]:
        """Return the keys of the rows to copy.

        Raises
        ------
        StoreChangedError
            Rows were erased or renumbered since they were read.
        """
        rows = [copy.row for copy in copies if copy.source is None]
        keys = iter(self._snapshot.keys_of(np.array(rows, dtype=np.int64)) if self._snapshot is not None else ())
        return [next(keys) if copy.source is None else copy.source for copy in copies]

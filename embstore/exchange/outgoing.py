"""Rows on their way out of a store, as every format reads them: a block at a time, from chunks that are checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.config import Config
from embstore._engine.format.ragged import Ragged, offsets_of
from embstore._engine.format.record import STRING, FieldSpec, offsets_name
from embstore._engine.read.open_snapshot import open_generation
from embstore._engine.read.read_rows import read_field, read_rows, row_bounds
from embstore._engine.read.snapshot import Snapshot
from embstore._engine.write.plans import row_blocks
from embstore.errors import DuplicateKeysError, StoreChangedError
from embstore.exchange.file_contents import Array
from embstore.exchange.store_metadata import StoreMetadata
from embstore.store.embedding_store import EmbeddingStore, View

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Sizes of texts, which a format needs before it writes them.

    Attributes
    ----------
    nbytes : int
        Of their UTF-8.
    longest : int
        In characters.
    has_nul, ends_in_nul : bool
        Whether one of them has a NUL in it, or at its end: formats cut it off there.
    offsets : ndarray, (n + 1,) int64
        Where each begins in the UTF-8 of all.
    """

    nbytes: int
    longest: int
    has_nul: bool
    ends_in_nul: bool
    offsets: NDArray[np.int64]


class Outgoing:
    """Rows to be written, as all formats take them.

    Attributes
    ----------
    snapshot : Snapshot
    rows : ndarray, (count,) int64
    fields : dict of str to FieldSpec
    columns : dict of str to str
    metadata : StoreMetadata
    """

    def __init__(self, snapshot: Snapshot, rows: Rows, names: Sequence[str]) -> None:
        record = snapshot.record
        self.snapshot = snapshot
        self.rows = rows
        self.fields: dict[str, FieldSpec] = {name: record.fields[name] for name in names}
        self.columns: dict[str, str] = {name: column.dtype for name, column in record.columns.items()}
        self.metadata = StoreMetadata(config=Config(record.config), fields=self.fields, columns=self.columns)

    @property
    def count(self) -> int:
        """The number of rows."""
        return len(self.rows)

    @property
    def texts(self) -> list[str]:
        """Names of the arrays of text: keys and columns."""
        return ["file_id", "class_name", *(name for name, dtype in self.columns.items() if dtype == STRING)]

    def blocks(self) -> Iterator[Rows]:
        """Cut the rows into blocks that are good to hold in memory."""
        return row_blocks(self.snapshot, self.rows)

    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Describe the arrays of numbers, as formats without ragged ones have them: dtype and shape of each."""
        found: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name, dtype in self.columns.items():
            if dtype != STRING:
                found[name] = (dtype, (self.count,))
        for name, spec in self.fields.items():
            if spec.ragged:
                offsets = self.offsets(name)
                found[name] = (spec.zarr_dtype, (int(offsets[-1]), *spec.shape))
                found[offsets_name(name)] = ("int64", offsets.shape)
            else:
                found[name] = (spec.zarr_dtype, (self.count, *spec.shape))
        return found

    def offsets(self, name: str) -> NDArray[np.int64]:
        """Return where the rows of a ragged field begin, one after the other: ``(count + 1,) int64``."""
        starts, stops = row_bounds(self.snapshot, name, self.rows)
        return offsets_of(stops - starts)

    def numbers(self, name: str) -> Iterator[Array]:
        """Yield the values of one of `arrays`, as they are stored."""
        if name.endswith("_offsets"):  # no field or column is called so
            yield self.offsets(name.removesuffix("_offsets"))
            return
        for rows in self.blocks():
            values = self.field(name, rows) if name in self.fields else np.asarray(self.column(name, rows))
            yield values.values if isinstance(values, Ragged) else values

    def field(self, name: str, rows: Rows) -> Array | Ragged:
        """Read a block of a field."""
        return read_field(self.snapshot, name, rows)

    def column(self, name: str, rows: Rows) -> Array | list[str]:
        """Read a block of a column, of file_ids or classes."""
        if name == "class_name":
            return self.snapshot.class_names_of(rows)
        record = self.snapshot.record
        return read_rows(self.snapshot, record.columns[name].array if name in self.columns else name, rows)

    def strings(self, name: str) -> Iterator[list[str]]:
        """Yield texts."""
        for rows in self.blocks():
            values = self.column(name, rows)
            assert isinstance(values, list)
            yield values

    def utf8(self, name: str) -> Iterator[Array]:
        """Yield texts as UTF-8, one after the other: ``(nbytes,) uint8``."""
        for values in self.strings(name):
            yield np.frombuffer("".join(values).encode(), np.uint8)

    def measured(self, name: str) -> Texts:
        """Read texts once to measure them."""
        lengths, longest, has_nul, ends_in_nul = [np.empty(0, np.int64)], 0, False, False
        for rows in self.blocks():
            values = self.column(name, rows)
            raw = [text.encode() for text in values]
            lengths.append(np.fromiter(map(len, raw), np.int64, len(raw)))
            longest = max(longest, max(map(len, values), default=0))
            has_nul = has_nul or any(b"\0" in text for text in raw)
            ends_in_nul = ends_in_nul or any(text.endswith(b"\0") for text in raw)
        offsets = offsets_of(np.concatenate(lengths))
        return Texts(
            nbytes=int(offsets[-1]), longest=longest, has_nul=has_nul, ends_in_nul=ends_in_nul, offsets=offsets
        )


def rows_to_write(rows: EmbeddingStore | View, fields: Sequence[str] | str | None = None) -> Outgoing:
    """Return the rows of a store or view as a format writes them.

    Raises
    ------
    UnknownFieldError, StoreChangedError
    DuplicateKeysError
        A view that has a row twice.
    """
    view = rows if isinstance(rows, View) else rows.select()
    seen = view.snapshot()
    wanted = [fields] if isinstance(fields, str) else list(seen.record.fields if fields is None else fields)
    names = list(dict.fromkeys(view.store.field_name(name) for name in wanted))
    unique, counts = np.unique(view.rows, return_counts=True)
    if len(unique) < len(view.rows):
        raise DuplicateKeysError(seen.keys_of(unique[counts > 1]), path=view.store.path)
    # Opened again, to check each chunk as it is read: a flipped bit must not get into the file.
    place, options = seen.folder.origin
    snapshot = open_generation(
        place,
        generation=seen.record.generation,
        rows=seen.record.rows,
        mapping=seen.mapping,
        check="touched",
        storage_options=options,
    )
    epoch = seen.record.epoch
    if snapshot.record.epoch != epoch and snapshot.is_dead(view.rows).any():
        raise StoreChangedError(
            view.store.path, "rows were erased; select() again", expected=epoch, found=snapshot.record.epoch
        )
    return Outgoing(snapshot, view.rows, names)

"""Export: rows of a store as a file of another kind, put in place whole.

Each chunk is checked as it is read. Formats take the rows from `Outgoing`, a block at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.config import Config
from embstore._engine.format.ragged import Ragged, offsets_of
from embstore._engine.format.record import STRING, FieldSpec, offsets_name
from embstore._engine.io.durable import replacing
from embstore._engine.io.remote import local_path
from embstore._engine.read.open_snapshot import open_generation
from embstore._engine.read.read_rows import read_field, read_rows, row_bounds
from embstore._engine.read.snapshot import Snapshot
from embstore._engine.write.plans import row_blocks
from embstore.errors import DuplicateKeysError, StoreChangedError
from embstore.exchange.file_contents import Array, format_of, module_of
from embstore.exchange.store_metadata import StoreMetadata
from embstore.store.embedding_store import EmbeddingStore, View

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Sizes of texts, which a format needs before it writes them.

    Attributes
    ----------
    longest : int
        In characters.
    has_nul : bool
        Whether one of them has a NUL: HDF5 cuts it off there, NumPy cuts off NULs at the end.
    offsets : ndarray, (n + 1,) int64
        Where each begins in the UTF-8 of all.
    """

    longest: int
    has_nul: bool
    offsets: NDArray[np.int64]

    @property
    def nbytes(self) -> int:
        """Bytes of their UTF-8."""
        return int(self.offsets[-1])


class Member(NamedTuple):
    """An array of a file: its name, dtype and shape, and its values in blocks."""

    name: str
    dtype: Any
    shape: tuple[int, ...]
    blocks: Iterator[Array]


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

    def members(self, text_dtype: Callable[[Texts], Any]) -> Iterator[Member]:
        """Yield the arrays of a format without lists: texts, numbers, and tokens with their offsets.

        Parameters
        ----------
        text_dtype : callable
            Returns the dtype of texts as the format has them. None: they are written as UTF-8 bytes and offsets.
        """
        for name in self.texts:
            texts = self.measured(name)
            dtype = text_dtype(texts)
            if dtype is None:
                yield Member(name, "uint8", (texts.nbytes,), self.utf8(name))
                yield Member(offsets_name(name), "int64", texts.offsets.shape, iter([texts.offsets]))
            else:
                yield Member(name, dtype, (self.count,), self._texts(name, dtype))
        for name, dtype in self.columns.items():
            if dtype != STRING:
                yield Member(name, dtype, (self.count,), self._numbers(name))
        for name, spec in self.fields.items():
            count = self.count
            if spec.ragged:
                starts, stops = row_bounds(self.snapshot, name, self.rows)
                offsets = offsets_of(stops - starts)
                count = int(offsets[-1])
                yield Member(offsets_name(name), "int64", offsets.shape, iter([offsets]))
            yield Member(name, spec.zarr_dtype, (count, *spec.shape), self._numbers(name))

    def _texts(self, name: str, dtype: Any) -> Iterator[Array]:
        for values in self.strings(name):
            yield np.array(values, dtype)

    def _numbers(self, name: str) -> Iterator[Array]:
        for rows in self.blocks():
            values = self.field(name, rows) if name in self.fields else self.column(name, rows)
            yield values.values if isinstance(values, Ragged) else np.asarray(values)

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
        lengths, longest, has_nul = [np.empty(0, np.int64)], 0, False
        for rows in self.blocks():
            values = self.column(name, rows)
            raw = [text.encode() for text in values]
            lengths.append(np.fromiter(map(len, raw), np.int64, len(raw)))
            longest = max(longest, max(map(len, values), default=0))
            has_nul = has_nul or any(b"\0" in text for text in raw)
        offsets = offsets_of(np.concatenate(lengths))
        return Texts(longest=longest, has_nul=has_nul, offsets=offsets)


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


def export_file(
    rows: EmbeddingStore | View,
    file: str | os.PathLike[str],
    *,
    format: str | None = None,
    fields: Sequence[str] | str | None = None,
) -> Path:
    """Write rows of a store to a file of another kind, which `import_file` can read again.

    Keys, classes, columns, fields and the config go with the rows. The file is written beside its place, synced and
    renamed: a file there is replaced whole or not at all. Deleted rows, provenance and the store's checksums stay
    behind: only a copy of the store's folder has them.

    Parameters
    ----------
    rows : EmbeddingStore or View
        All live rows, or those of the view in its order.
    file : path_like
    format : {"pt", "npz", "hdf5", "safetensors", "parquet"}, optional
        Otherwise as the suffix says.
    fields : str or sequence of str, optional
        All, unless given.

    Returns
    -------
    Path
        Of the file.

    Raises
    ------
    UnknownFormatError, MissingLibraryError, UnknownFieldError, DuplicateKeysError, StoreChangedError
    CorruptStoreError, StorageFullError, ReadOnlyError

    Notes
    -----
    Config, fields and columns are JSON: the attribute ``embstore`` of an HDF5 file, the metadata entry ``embstore`` of
    a safetensors or Parquet file, the array ``__embstore__`` of an .npz. A .pt has the config under ``"metadata"``.

    NumPy, HDF5 and Parquet have no bfloat16: it is written as its bits, uint16. Rows of a ragged field are lists in
    Parquet, elsewhere an array of tokens and one of offsets, ``<field>_offsets``. Texts are such pairs of arrays (UTF-8
    bytes) in safetensors, in HDF5 and .npz if they have NULs, in .npz also if padding would waste much.

    Examples
    --------
    >>> import numpy as np, tempfile, embstore
    >>> folder = tempfile.mkdtemp()
    >>> with embstore.open(folder + "/a.zarr", "w-", config={"encoder": "demo"}) as store:
    ...     added = store.append(["a:dog", "b:cat"], np.ones((2, 3), np.float32))
    ...     path = export_file(store, folder + "/a.npz")
    >>> sorted(np.load(path)), np.load(path)["embedding"].shape
    (['__embstore__', 'class_name', 'embedding', 'file_id'], (2, 3))
    """
    path = local_path(file).absolute()
    kind = format_of(path, format)
    chosen = rows_to_write(rows, fields)
    with replacing(path) as partial:
        module_of(kind).write(partial, chosen)
    return path

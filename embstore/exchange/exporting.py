"""Export: write rows of a store to a file of another format, which replaces an old one atomically.

Each chunk is checked as it is read. The formats read the rows from `Outgoing`, a block at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.config import Config
from embstore._engine.format.ragged import Ragged, offsets_of
from embstore._engine.format.record import STRING, FieldSpec, offsets_name
from embstore._engine.io.durable import replacing
from embstore._engine.io.remote import local_path
from embstore._engine.read.read_rows import read_field, read_rows, row_bounds
from embstore._engine.write.plans import row_blocks
from embstore.errors import DuplicateKeysError
from embstore.exchange.file_contents import Array, format_of, module_of
from embstore.exchange.store_metadata import StoreMetadata
from embstore.store.embedding_store import EmbeddingStore, View

Rows = NDArray[np.int64]


class Texts(NamedTuple):
    """Sizes of texts. A format needs them before it writes the texts.

    Attributes
    ----------
    longest : int
        Length of the longest, in characters.
    has_nul : bool
        True if one of them has a NUL. HDF5 cuts a text off there, NumPy removes NULs at the end.
    offsets : ndarray, (n + 1,) int64
        Start of each in the UTF-8 of all, in bytes.
    """

    longest: int
    has_nul: bool
    offsets: NDArray[np.int64]


class Member(NamedTuple):
    """An array of a file: its name, dtype and shape, and its values in blocks."""

    name: str
    dtype: Any
    shape: tuple[int, ...]
    blocks: Iterator[Array]


class Outgoing:
    """The rows to write, for all formats.

    Attributes
    ----------
    snapshot : Snapshot
    rows : ndarray, (n,) int64
    fields : dict of str to FieldSpec
    columns : dict of str to str
    metadata : StoreMetadata
    """

    def __init__(self, rows: EmbeddingStore | View, fields: Sequence[str] | str | None = None) -> None:
        """Take the rows of a store or view.

        Raises
        ------
        UnknownFieldError, StoreChangedError
        DuplicateKeysError
            The view has a row twice.
        """
        view = rows if isinstance(rows, View) else rows.select()
        seen = view.snapshot()
        record = seen.record
        wanted = [fields] if isinstance(fields, str) else list(record.fields if fields is None else fields)
        unique, counts = np.unique(view.rows, return_counts=True)
        if len(unique) < len(view.rows):
            raise DuplicateKeysError(seen.keys_of(unique[counts > 1]), path=view.store.path)
        self.snapshot = seen.checked()
        self.rows = view.rows
        self.fields: dict[str, FieldSpec] = {name: record.fields[name] for name in map(view.store.field_name, wanted)}
        self.columns: dict[str, str] = {name: column.dtype for name, column in record.columns.items()}
        self.metadata = StoreMetadata(config=Config(record.config), fields=self.fields, columns=self.columns)

    @property
    def texts(self) -> list[str]:
        """Names of the arrays of texts: keys and columns."""
        return ["file_id", "class_name", *(name for name, dtype in self.columns.items() if dtype == STRING)]

    def blocks(self) -> Iterator[Rows]:
        """Yield the rows in blocks that fit in memory."""
        return row_blocks(self.snapshot, self.rows)

    def members(self, text_dtype: Callable[[Texts], Any]) -> Iterator[Member]:
        """Yield the arrays of a format without lists: texts, numbers, and tokens with their offsets.

        Parameters
        ----------
        text_dtype : callable
            Returns the dtype of texts in the format, or None to write them as UTF-8 bytes and offsets.
        """
        for name in self.texts:
            texts = self.measured(name)
            dtype = text_dtype(texts)
            if dtype is None:
                yield Member(name, "uint8", (int(texts.offsets[-1]),), self._utf8(name))
                yield Member(offsets_name(name), "int64", texts.offsets.shape, iter([texts.offsets]))
            else:
                yield Member(name, dtype, self.rows.shape, self._texts(name, dtype))
        for name, dtype in self.columns.items():
            if dtype != STRING:
                yield Member(name, dtype, self.rows.shape, self._numbers(name))
        for name, spec in self.fields.items():
            count = len(self.rows)
            if spec.ragged:
                starts, stops = row_bounds(self.snapshot, name, self.rows)
                offsets = offsets_of(stops - starts)
                count = int(offsets[-1])
                yield Member(offsets_name(name), "int64", offsets.shape, iter([offsets]))
            yield Member(name, spec.zarr_dtype, (count, *spec.shape), self._numbers(name))

    def _texts(self, name: str, dtype: Any) -> Iterator[Array]:
        for rows in self.blocks():
            yield np.array(self.values(name, rows), dtype)

    def _numbers(self, name: str) -> Iterator[Array]:
        for rows in self.blocks():
            values = self.values(name, rows)
            yield values.values if isinstance(values, Ragged) else np.asarray(values)

    def _utf8(self, name: str) -> Iterator[Array]:
        """Yield the UTF-8 of texts: ``(nbytes,) uint8``."""
        for rows in self.blocks():
            yield np.frombuffer("".join(self.values(name, rows)).encode(), np.uint8)

    def values(self, name: str, rows: Rows) -> Any:
        """Read a block of a field, a column, file_ids or classes: an array, `Ragged`, or a list of texts."""
        if name in self.fields:
            return read_field(self.snapshot, name, rows)
        if name == "class_name":
            return self.snapshot.class_names_of(rows)
        columns = self.snapshot.record.columns
        return read_rows(self.snapshot, columns[name].array if name in columns else name, rows)

    def measured(self, name: str) -> Texts:
        """Return the sizes of texts, which are read for it."""
        lengths, longest, has_nul = [np.empty(0, np.int64)], 0, False
        for rows in self.blocks():
            values = self.values(name, rows)
            raw = [text.encode() for text in values]
            lengths.append(np.fromiter(map(len, raw), np.int64, len(raw)))
            longest = max(longest, max(map(len, values), default=0))
            has_nul = has_nul or any(b"\0" in text for text in raw)
        return Texts(longest, has_nul, offsets_of(np.concatenate(lengths)))


def export_file(
    rows: EmbeddingStore | View,
    file: str | os.PathLike[str],
    *,
    format: str | None = None,
    fields: Sequence[str] | str | None = None,
) -> Path:
    """Write rows of a store to a file of another format, which `import_file` can read again.

    Keys, classes, columns, fields and the config are written with the rows. The file is written under a temporary name,
    synced and renamed: an old file is replaced whole or not at all. Deleted rows, provenance and the store's checksums
    are not exported. Only a copy of the store's folder has them.

    Parameters
    ----------
    rows : EmbeddingStore or View
        All live rows, or those of the view in its order.
    file : path_like
    format : {"pt", "npz", "hdf5", "safetensors", "parquet"}, optional
        The default follows from the suffix.
    fields : str or sequence of str, optional
        The default is all.

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
    chosen = Outgoing(rows, fields)
    with replacing(path) as partial:
        module_of(kind).write(partial, chosen)
    return path

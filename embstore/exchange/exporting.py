"""Export: write rows of a store to a file of another format, which replaces an old one atomically.

Each chunk is checked as it is read. The formats read the rows from `Outgoing`, a block at a time.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.arguments import check_choice, text_list
from embstore._engine.format.config import Config
from embstore._engine.format.keys import key_text
from embstore._engine.format.ragged import Ragged, offsets_of
from embstore._engine.format.record import BFLOAT16, STRING, FieldSpec, offsets_name
from embstore._engine.format.source_columns import ORIGINS_COLUMN
from embstore._engine.io.durable import replacing
from embstore._engine.io.urls import local_path
from embstore._engine.read.dtypes import as_numbers
from embstore._engine.read.read_rows import read_field, read_rows, row_bounds
from embstore._engine.write.plans import row_blocks
from embstore.errors import DuplicateKeysError, LayoutError
from embstore.exchange.file_contents import Array, format_of, module_of
from embstore.exchange.store_metadata import StoreMetadata
from embstore.store.as_view import as_view
from embstore.store.embedding_store import EmbeddingStore, View

Rows = NDArray[np.int64]
Layout = Literal["columns", "per-key"]
Order = Literal["file_id:class", "file_id"]
"""Names of arrays in a file with one a row."""


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
    names : list of str or None
        The name of each row's array, in a file with one array a row.
    metadata : StoreMetadata
    path : Path
        Of the file, for errors.
    """

    def __init__(
        self,
        rows: EmbeddingStore | View,
        path: Path,
        fields: Sequence[str] | str | None = None,
        per_key: Order | None = None,
    ) -> None:
        """Take the rows of a store or view. `per_key` is the order in the names of arrays, in a file with one a row.

        Raises
        ------
        UnknownFieldError, StoreChangedError
        DuplicateKeysError
            The view has a row twice, or two rows have one file_id and are named after it.
        LayoutError
            There are several fields, and one array a row.
        """
        view = as_view(rows)
        seen = view.snapshot()
        record = seen.record
        wanted = list(record.fields) if fields is None else text_list("fields", fields)
        unique, counts = np.unique(view.rows, return_counts=True)
        if len(unique) < len(view.rows):
            raise DuplicateKeysError(seen.keys_of(unique[counts > 1]), path=view.store.path)
        self.snapshot = seen.checked()
        self.rows = view.rows
        self.fields: dict[str, FieldSpec] = {name: record.fields[name] for name in map(view.store.field_name, wanted)}
        # The bits of origins have a meaning only beside the record, whose list of paths stays here.
        kept = record.columns.keys() - {ORIGINS_COLUMN}
        self.columns: dict[str, str] = {name: column.dtype for name, column in record.columns.items() if name in kept}
        self.path = path
        self.names = None if per_key is None else self._row_names(per_key)
        columns = self.columns if per_key is None else {}
        config = Config(record.config)
        self.metadata = StoreMetadata(config=config, fields=self.fields, columns=columns, per_key=per_key)

    def _row_names(self, order: Order) -> list[str]:
        """Return the name of each row's array: the file_id, with the class if `order` has it and it is not ``_``."""
        if len(self.fields) != 1:
            raise self.refused(f"the rows have {len(self.fields)} fields: pass fields= with one of them")
        names: list[str] = []
        for rows in self.blocks():
            for file_id, label in zip(self.values("file_id", rows), self.values("class_name", rows), strict=True):
                names.append(file_id if order == "file_id" else key_text(file_id, label))
        if len(set(names)) < len(names):
            twice = [name for name, count in Counter(names).items() if count > 1]
            raise DuplicateKeysError(twice, path=self.path, hint='pass keys="file_id:class"')
        if odd := [name for name in names if "\0" in name]:
            raise self.refused(f"the name {odd[0]!r} has a NUL")
        return names

    def refused(self, reason: str) -> LayoutError:
        """Return an error of a layout that can't hold these rows."""
        return LayoutError(self.path, "per-key", reason)

    @property
    def texts(self) -> list[str]:
        """Names of the arrays of texts: keys and columns."""
        return ["file_id", "class_name", *(name for name, dtype in self.columns.items() if dtype == STRING)]

    def blocks(self) -> Iterator[Rows]:
        """Yield the rows in blocks that fit in memory."""
        return row_blocks(self.snapshot, self.rows)

    def members(self, text_dtype: Callable[[Texts], Any], *, bfloat16: bool = False) -> Iterator[Member]:
        """Yield the arrays of a format without lists: texts, numbers, and tokens with their offsets.

        With one array a row, yield these. Their values must be taken in this order.

        Parameters
        ----------
        text_dtype : callable
            Returns the dtype of texts in the format, or None to write them as UTF-8 bytes and offsets.
        bfloat16 : bool
            True if the format has this dtype, and takes its bits. Otherwise it is uint16, or float32 in an array a row.
        """
        if self.names is not None:
            yield from self._one_a_row(bfloat16=bfloat16)
            return
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
            dtype = spec.dtype if bfloat16 else spec.zarr_dtype
            yield Member(name, dtype, (count, *spec.shape), self._numbers(name))

    def _one_a_row(self, *, bfloat16: bool) -> Iterator[Member]:
        """Yield an array for each row. All take their values from one iterator, a block at a time."""
        ((name, spec),) = self.fields.items()
        values = itertools.chain.from_iterable(
            block if bfloat16 else as_numbers(block, self.fields[name])
            for block in (self.values(name, rows) for rows in self.blocks())
        )
        dtype = "float32" if spec.dtype == BFLOAT16 and not bfloat16 else spec.dtype
        lengths: Iterator[tuple[int, ...]] = itertools.repeat(())
        if spec.ragged:
            starts, stops = row_bounds(self.snapshot, name, self.rows)
            lengths = ((length,) for length in (stops - starts).tolist())
        for key, length in zip(self.names or (), lengths, strict=False):
            yield Member(key, dtype, (*length, *spec.shape), itertools.islice(values, 1))

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
    layout: Layout = "columns",
    keys: Order = "file_id:class",
) -> Path:
    """Write rows of a store to a file of another format, which `import_file` can read again.

    Keys, classes, columns, fields and the config are written with the rows. With ``layout="per-key"``, the file has one
    array a row, as most scripts expect: ``h5py.File(file)["P12345"][()]``. It is written under a temporary name, synced
    and renamed: an old file is replaced whole or not at all. Deleted rows, provenance, the store's checksums and the
    paths that the samples came from are not exported. Only a copy of the store's folder has them.

    Parameters
    ----------
    rows : EmbeddingStore or View
        All live rows, or those of the view in its order.
    file : path_like
    format : {"pt", "npz", "hdf5", "safetensors", "parquet"}, optional
        The default follows from the suffix.
    fields : str or sequence of str, optional
        The default is all.
    layout : {"columns", "per-key"}
        "per-key" writes one field, each row as an array named after its key, without columns.
    keys : {"file_id:class", "file_id"}
        The names of these arrays. A key of class ``_`` is named after its file_id alone, unless that has a colon.

    Returns
    -------
    Path
        Of the file.

    Raises
    ------
    UnknownFormatError, MissingLibraryError, UnknownFieldError, DuplicateKeysError, StoreChangedError
    LayoutError
        The rows have several fields, the format is Parquet, or HDF5 can't hold a name.
    CorruptStoreError, StorageFullError, ReadOnlyError

    Notes
    -----
    Config, fields and columns are JSON: the attribute ``embstore`` of an HDF5 file, the metadata entry ``embstore`` of
    a safetensors or Parquet file, the array ``__embstore__`` of an .npz. A .pt has the config under ``"metadata"``.

    NumPy, HDF5 and Parquet have no bfloat16: it is written as its bits, uint16. Rows of a ragged field are lists in
    Parquet, elsewhere an array of tokens and one of offsets, ``<field>_offsets``. Texts are such pairs of arrays (UTF-8
    bytes) in safetensors, in HDF5 and .npz if they have NULs, in .npz also if padding would waste much.

    One array a row: bfloat16 is float32 in HDF5 and .npz. The config is in HDF5 and safetensors files only.
    An .npz or .pt file has the arrays alone, and is imported again with ``config=``.

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
    check_choice("layout", layout, get_args(Layout))
    check_choice("keys", keys, get_args(Order))
    chosen = Outgoing(rows, path, fields, keys if layout == "per-key" else None)
    with replacing(path) as partial:
        module_of(kind).write(partial, chosen)
    return path

"""Dictionaries of tensors in ``.pt`` files, as `torch.save` writes them: read into a store, and written from one.

Read are ``{key: tensor}``, ``{key: {"embedding": tensor, "class_name": …, other scalars}}`` (or ``"embeddings"``),
both kinds in one file, and either of them under ``{"embeddings": …, "metadata": …}``, whose metadata is the config.
Arrays of NumPy's may stand for tensors; they lie in the pickle itself, and so come into memory whole, where tensors are
mapped. Scalars that most entries have become columns. An entry's ``class_name`` decides how its key is read; keys with
a colon and without a class need the option `keys`. ``{"ids": list, "embeddings": matrix}`` has a row for each id.

Nothing in a file is run: it is loaded with ``weights_only=True``. Imports torch when it is called, and only then.
"""

from __future__ import annotations

import codecs
import contextlib
import logging
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from embstore._engine.format.record import NUMERIC
from embstore._engine.io.durable import replacing
from embstore._engine.io.remote import local_path
from embstore._engine.lazy import imported
from embstore._engine.read.read_rows import row_bounds
from embstore._outputs.tensors import as_tensor
from embstore.errors import FileFormatError, UnknownFieldError, UnsafeFileError
from embstore.exchange.base import Table, Unreadable, explained
from embstore.exchange.foreign import foreign_table
from embstore.exchange.outgoing import Outgoing, rows_to_write
from embstore.exchange.pt_columnar import ColumnarFile, is_columnar
from embstore.exchange.pt_declared import EntriesFile
from embstore.exchange.pt_entries import DEFAULT_FIELD, entries_table
from embstore.exchange.scalars import config_of
from embstore.exchange.tables import table_of
from embstore.exchange.wanted import Wanted
from embstore.store.embedding_store import EmbeddingStore
from embstore.store.view import View

logger = logging.getLogger("embstore")

Style = Literal["tensor", "entry"]

_ENTRIES: Final = "embeddings"
_METADATA: Final = "metadata"
_DOCUMENT: Final = "embstore"
_ZIP: Final = b"PK\x03\x04"
_BROKEN: Final = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    EOFError,
    RuntimeError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    AssertionError,
    NotImplementedError,
    ImportError,
    OverflowError,
    MemoryError,
    OSError,
)
"""What torch's reader was seen to raise over broken files."""
_UNSAFE: Final = re.compile(r"GLOBAL|reduce|class|function|allowlist", re.IGNORECASE)


def _torch() -> Any:
    return imported("torch", "torch", "for .pt files")


# -- reading --------------------------------------------------------------------------------------


def read_table(path: Path, wanted: Wanted) -> Table:
    """Say what a file of tensors gives. Tensors are mapped, and read when they are asked for.

    Raises
    ------
    FileFormatError, UnsafeFileError, MissingLibraryError, UnknownFieldError, UnknownColumnError
    """
    found = _load(path)
    if not isinstance(found, dict):
        raise FileFormatError(path, f"expected a dictionary of tensors, found {type(found).__name__}")
    entries, metadata, document, left_out = _parts(found)
    if document is not None:
        return table_of(EntriesFile(path, entries, document), wanted)
    if is_columnar(entries):
        table: Table = foreign_table(ColumnarFile(path, entries), wanted)
    else:
        table = entries_table(path, entries, wanted, left_out, [])
    if metadata:
        table.config, refused = config_of(metadata)
        table.left_out += refused
        for one in refused:
            logger.warning("%s: its metadata is not all in the config: %s", path, one)
    return table


def _parts(found: Mapping[Any, Any]) -> tuple[Mapping[Any, Any], Mapping[Any, Any], str | None, list[Unreadable]]:
    """Return the entries of a file, its metadata, its manifest, and what else is in it."""
    entries = found.get(_ENTRIES)
    if not isinstance(entries, dict):
        if is_columnar(found) and isinstance(found.get(_METADATA), dict):
            return {name: value for name, value in found.items() if name != _METADATA}, found[_METADATA], None, []
        return found, {}, None, []
    metadata, document = found.get(_METADATA), found.get(_DOCUMENT)
    left_out = [
        Unreadable(name, f"expected nothing but {_ENTRIES!r} and {_METADATA!r}, found {type(value).__name__}")
        for name, value in found.items()
        if name not in (_ENTRIES, _METADATA, _DOCUMENT)
    ]
    if metadata is not None and not isinstance(metadata, dict):
        left_out.append(Unreadable(_METADATA, f"expected a dictionary, found {type(metadata).__name__}"))
        metadata = None
    return entries, metadata or {}, document if isinstance(document, str) else None, left_out


def _load(path: Path) -> Any:
    """Load a file without running anything in it."""
    torch = _torch()
    with path.open("rb") as file:
        mapped = file.read(len(_ZIP)) == _ZIP
    if not mapped:
        logger.warning(
            "%s: it is no zip (torch wrote none before 1.6): it can't be mapped, and is read into memory whole", path
        )
    try:
        with explained(path, *_BROKEN), _numpy_allowed(torch):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileFormatError as error:
        cause = error.__cause__
        if isinstance(cause, pickle.UnpicklingError) and _UNSAFE.search(str(cause)):
            what = re.search(r"GLOBAL ([\w.]+)", str(cause))
            reason = f"loading it would run {what[1]}" if what else "loading it could run code"
            raise UnsafeFileError(path, f"{reason}; nothing was run") from cause
        raise


def _numpy_allowed(torch: Any) -> contextlib.AbstractContextManager[Any]:
    """Let arrays and scalars of NumPy's be loaded, and nothing else that torch does not allow itself."""
    allow = getattr(torch.serialization, "safe_globals", None)
    if allow is None:  # torch 2.4: their files are refused
        return contextlib.nullcontext()
    rebuild, scalar = np.empty(0).__reduce__()[0], np.float32(0).__reduce__()[0]
    kinds = {type(np.dtype(name)) for name in (*NUMERIC, "str", "bytes")}
    allowed: list[Any] = [rebuild, scalar, np.ndarray, np.dtype, *kinds, codecs.encode]
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 7):  # names that NumPy 1 and 2 wrote
        for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            allowed += [(rebuild, f"{module}._reconstruct"), (scalar, f"{module}.scalar")]
    context: contextlib.AbstractContextManager[Any] = allow(allowed)
    return context


# -- writing --------------------------------------------------------------------------------------


def write_file(
    rows: EmbeddingStore | View,
    file: str | os.PathLike[str],
    *,
    style: Style = "entry",
    metadata: bool = True,
    fields: Sequence[str] | str | None = None,
) -> Path:
    """Write rows as a dictionary of tensors, which `torch.load` reads; synced, and put in place whole.

    The tensors handed to `torch.save` lie over the store's files, so that none is in memory. Of a store that can't be
    mapped (compressed, remote), a whole field is.

    Parameters
    ----------
    rows : EmbeddingStore or View
    file : path_like
    style : {"entry", "tensor"}
        ``{key: {"embedding": tensor, "class_name": …, columns}}``, where several fields stand under their own names; or
        ``{key: tensor}``, which has room for one field and no columns.
    metadata : bool
        Whether to put the entries under ``"embeddings"``, and beside them the config as ``"metadata"`` and what
        `import_file` needs to read all of it back.
    fields : str or sequence of str, optional
        All, unless given.

    Returns
    -------
    Path
        Of the file.

    Raises
    ------
    UnknownFieldError, MissingLibraryError, DuplicateKeysError, StoreChangedError, StorageFullError, ReadOnlyError
    """
    if style not in ("entry", "tensor"):
        raise ValueError(f"expected style 'entry' or 'tensor', found {style!r}")
    chosen, path = rows_to_write(rows, fields), local_path(file).absolute()
    if style == "tensor" and len(chosen.fields) != 1:
        raise UnknownFieldError(None, chosen.fields, hint="name the one to write with fields=")
    with replacing(path) as partial:
        write(partial, chosen, style=style, metadata=metadata)
    return path


def write(path: Path, rows: Outgoing, *, style: Style = "entry", metadata: bool = True) -> None:
    """Write rows to a new file; see `write_file`."""
    torch = _torch()
    if style == "tensor":
        rows.columns = {}
    keys, columns = _described(rows)
    tensors = {name: _tensors(rows, name) for name in rows.fields}
    only = next(iter(tensors)) if len(tensors) == 1 else None
    if style == "tensor":
        assert only is not None
        entries: dict[str, Any] = dict(zip(keys, tensors[only], strict=True))
    else:
        if only is not None and DEFAULT_FIELD not in columns:
            tensors = {DEFAULT_FIELD: tensors[only]}
        parts = {"class_name": [key.rpartition(":")[2] for key in keys], **columns}
        names = [*tensors, *parts]
        entries = {
            key: dict(zip(names, values, strict=True))
            for key, *values in zip(keys, *tensors.values(), *parts.values(), strict=True)
        }
    # A float16 or float32 comes back as the number it was, but of a NaN perhaps other bits.
    document = rows.document(unchecked=[name for name, dtype in rows.columns.items() if dtype.startswith("float")])
    whole = {_ENTRIES: entries, _METADATA: rows.config.to_dict(), _DOCUMENT: document} if metadata else entries
    torch.save(whole, path)


def _described(rows: Outgoing) -> tuple[list[str], dict[str, list[Any]]]:
    """Read keys and columns; also reads each field once, for its checksum."""
    keys: list[str] = []
    columns: dict[str, list[Any]] = {name: [] for name in rows.columns}
    for block in rows.blocks():
        pairs = zip(rows.column("file_id", block), rows.column("class_name", block), strict=True)
        keys += [f"{file_id}:{class_name}" for file_id, class_name in pairs]
        for name, values in columns.items():
            found = rows.column(name, block)
            values += found if isinstance(found, list) else found.tolist()
        for name in rows.fields:
            rows.field(name, block)
    return keys, columns


def _tensors(rows: Outgoing, name: str) -> Iterator[Any]:
    """Yield a field's rows as tensors, each with a storage of its own, over the store's own map."""
    spec, values = rows.fields[name], rows.snapshot.private(name)
    if spec.ragged:
        bounds = zip(*(found.tolist() for found in row_bounds(rows.snapshot, name, rows.rows)), strict=True)
        return (as_tensor(values[start:stop], spec) for start, stop in bounds)
    return (as_tensor(values[row : row + 1].reshape(spec.shape), spec) for row in rows.rows.tolist())

"""Dictionaries of tensors in ``.pt`` files of `torch.save`: read into a store, and written from a store.

These forms are read: ``{key: tensor}``, ``{key: {"embedding": tensor, "class_name": …, other scalars}}`` (or
``"embeddings"``), both kinds in one file, and either of them under ``{"embeddings": …, "metadata": …}``. The metadata
becomes the config. NumPy arrays may replace tensors. They lie in the pickle itself, and are read into memory whole,
while tensors are mapped. Scalars that most entries have become columns. The ``class_name`` of an entry decides how its
key is read. Keys with a colon and without a class need the option `keys`. ``{"ids": list, "embeddings": matrix}`` has a
row for each id.

No code of a file is run: it is loaded with ``weights_only=True``. torch is imported at the first call.
"""

from __future__ import annotations

import codecs
import contextlib
import logging
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from embstore._engine.format.keys import key_text
from embstore._engine.format.record import DEFAULT_FIELD, NUMERIC, dtype_name
from embstore._engine.lazy import imported
from embstore._engine.read.read_rows import row_bounds
from embstore._outputs.tensors import as_tensor
from embstore.errors import FileFormatError, UnsafeFileError
from embstore.exchange.exporting import Outgoing
from embstore.exchange.file_contents import Unreadable, explained
from embstore.exchange.import_options import ImportOptions
from embstore.exchange.interpret import table_of
from embstore.exchange.memory_file import EMBEDDING, KEYS, MemoryFile
from embstore.exchange.pt_entries import entries_file, exported_entries
from embstore.exchange.scalars import config_of
from embstore.exchange.store_metadata import ENTRY, StoreMetadata
from embstore.exchange.table import Table

logger = logging.getLogger("embstore")

_ENTRIES: Final = "embeddings"
_METADATA: Final = "metadata"
_EXPECTED: Final[Mapping[Any, str]] = {_METADATA: "a dictionary"}
_NO_OTHERS: Final = f"nothing but {_ENTRIES!r} and {_METADATA!r}"
_ZIP: Final = b"PK\x03\x04"
_UNSAFE: Final = re.compile(r"GLOBAL|reduce|class|function|allowlist", re.IGNORECASE)


def _torch() -> Any:
    return imported("torch", "torch", "for .pt files")


# -- reading --------------------------------------------------------------------------------------


def read_table(path: Path, options: ImportOptions) -> Table:
    """Return the rows of a file of tensors. Tensors are mapped, and read when they are used.

    Raises
    ------
    FileFormatError, UnsafeFileError, MissingLibraryError, UnknownFieldError, UnknownColumnError
    """
    found = load_file(path)
    if not isinstance(found, dict):
        raise FileFormatError(path, f"expected a dictionary of tensors, found {type(found).__name__}")
    entries, metadata, left_out = found, found.get(_METADATA), []
    if isinstance(found.get(_ENTRIES), dict):
        entries = found[_ENTRIES]
        if isinstance(found.get(ENTRY), dict):
            stated = StoreMetadata.parse({**found[ENTRY], "config": metadata}, path)
            return table_of(exported_entries(path, entries, stated, options), options)
        left_out = [
            Unreadable(name, f"expected {_EXPECTED.get(name, _NO_OTHERS)}, found {type(value).__name__}")
            for name, value in found.items()
            if name not in (_ENTRIES, ENTRY) and not (name == _METADATA and isinstance(value, dict | None))
        ]
    elif is_columnar(found, options.key_column) and isinstance(metadata, dict):
        entries = {name: value for name, value in found.items() if name != _METADATA}
    else:
        metadata = None
    columnar = is_columnar(entries, options.key_column)
    if not columnar and (names := _names_beside(entries)) is not None:
        raise FileFormatError(
            path,
            f"{names!r} is a list beside a matrix of as many rows: state key_column={names!r} if it holds the keys",
        )
    file = (
        MemoryFile.of_columns(path, entries, options.key_column) if columnar else entries_file(path, entries, options)
    )
    file.left_out += left_out
    if metadata and isinstance(metadata, dict):
        file.config, refused = config_of(metadata)
        file.left_out += refused
        for one in refused:
            logger.warning("%s: its metadata is not all in the config: %s", path, one)
    return table_of(file, options)


def is_columnar(found: Mapping[Any, Any], key_column: str | None = None) -> bool:
    """Return True if a dictionary holds arrays of rows, False if it has an entry for each row."""
    if any(len(getattr(found.get(name), "shape", ())) > 1 for name in EMBEDDING):
        return True  # "embeddings" is the name of a matrix, not the key of a row
    return any(isinstance(found.get(name), list | tuple) or _is_vector(found.get(name)) for name in (key_column, *KEYS))


def _names_beside(entries: Mapping[Any, Any]) -> Any:
    """Return the name of a list that stands beside a matrix of as many rows. Else the matrix would be one row."""
    rows = {value.shape[0] for value in entries.values() if len(getattr(value, "shape", ())) > 1}
    lists = (name for name, value in entries.items() if isinstance(value, list | tuple) or _is_text_array(value))
    return next((name for name in lists if len(entries[name]) in rows), None)


def _is_text_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "USO"


def _is_vector(value: Any) -> bool:
    """Return True if a value can hold names, one for each row."""
    if len(getattr(value, "shape", ())) != 1:
        return False
    return not value.shape[0] or dtype_name(value.dtype).startswith(("int", "uint", "str"))


def load_file(path: Path) -> Any:
    """Load a file without running its code."""
    torch = _torch()
    with path.open("rb") as file:
        mapped = file.read(len(_ZIP)) == _ZIP
    if not mapped:
        logger.warning(
            "%s: it is not a zip (torch before 1.6 wrote none), so it is read into memory instead of mapped", path
        )
    try:
        with explained(path), _numpy_allowed(torch):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileFormatError as error:
        cause = error.__cause__
        if isinstance(cause, pickle.UnpicklingError) and _UNSAFE.search(str(cause)):
            what = re.search(r"GLOBAL ([\w.]+)", str(cause))
            reason = f"loading it would run {what[1]}" if what else "loading it could run code"
            raise UnsafeFileError(path, f"{reason}; nothing was run") from cause
        raise


def _numpy_allowed(torch: Any) -> contextlib.AbstractContextManager[Any]:
    """Allow NumPy's arrays and scalars to be loaded, besides the types that torch allows."""
    allow = getattr(torch.serialization, "safe_globals", None)
    if allow is None:  # torch 2.4: files with NumPy arrays are refused
        return contextlib.nullcontext()
    rebuild, scalar = np.empty(0).__reduce__()[0], np.float32(0).__reduce__()[0]
    kinds = {type(np.dtype(name)) for name in (*NUMERIC, "str", "bytes")}
    allowed: list[Any] = [rebuild, scalar, np.ndarray, np.dtype, *kinds, codecs.encode]
    allowed.append(bytes)  # an empty array is pickled with bytes()
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 7):  # names that NumPy 1 and 2 wrote
        for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            allowed += [(rebuild, f"{module}._reconstruct"), (scalar, f"{module}.scalar")]
    context: contextlib.AbstractContextManager[Any] = allow(allowed)
    return context


# -- writing --------------------------------------------------------------------------------------


def write(path: Path, rows: Outgoing) -> None:
    """Write rows to a new file, an entry for each: ``{key: {"embedding": tensor, "class_name": …, columns}}``.

    Several fields have their own names in the entries. The entries are under ``"embeddings"``, the config is under
    ``"metadata"``. The tensors passed to `torch.save` are mapped from the store's files, so that none is in memory. A
    field of a store that can't be mapped (compressed, remote) is in memory whole. One array a row is ``{key: tensor}``.
    """
    if rows.names is not None:
        (tensors_of,) = (_tensors(rows, name) for name in rows.fields)
        _torch().save(dict(zip(rows.names, tensors_of, strict=True)), path)
        return
    parts: dict[str, list[Any]] = {name: [] for name in ("file_id", "class_name", *rows.columns)}
    for block in rows.blocks():
        for name, values in parts.items():
            found = rows.values(name, block)
            values += found if isinstance(found, list) else found.tolist()
    file_ids = parts.pop("file_id")
    tensors = {name: _tensors(rows, name) for name in rows.fields}
    if len(tensors) == 1 and DEFAULT_FIELD not in parts:
        tensors = {DEFAULT_FIELD: next(iter(tensors.values()))}
    names = [*tensors, *parts]
    entries = {
        key_text(file_id, class_name): dict(zip(names, values, strict=True))
        for file_id, class_name, *values in zip(
            file_ids, parts["class_name"], *tensors.values(), *parts.values(), strict=True
        )
    }
    metadata = rows.metadata.to_dict()
    _torch().save({_ENTRIES: entries, _METADATA: metadata.pop("config"), ENTRY: metadata}, path)


def _tensors(rows: Outgoing, name: str) -> Iterator[Any]:
    """Yield the rows of a field as tensors over the store's map, each with its own storage."""
    spec, values = rows.fields[name], rows.snapshot.writable_copy(name)
    if spec.ragged:
        bounds = zip(*(found.tolist() for found in row_bounds(rows.snapshot, name, rows.rows)), strict=True)
        return (as_tensor(values[start:stop], spec) for start, stop in bounds)
    return (as_tensor(values[row : row + 1].reshape(spec.shape), spec) for row in rows.rows.tolist())

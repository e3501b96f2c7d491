"""Import: write the rows of a file to a store, in one commit.

One commit, because half a file in a store is hard to reason about, and because files of arrays are read column by
column, as a commit takes them. `interpret` reads the arrays as rows, `bulk_append` writes them to the store.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as data_field
from pathlib import Path
from typing import Any

from embstore._engine.format.arguments import text_list
from embstore._engine.format.config import Config
from embstore._engine.format.keys import UNLABELLED, Key
from embstore._engine.format.record import FieldSpec
from embstore._engine.format.text import plain_text
from embstore._engine.io.urls import is_url, local_path
from embstore._engine.notebook import ShownAsText
from embstore._engine.pickles import PickledByName
from embstore._engine.progress import Progress, check_progress, reporting
from embstore._engine.read.open_snapshot import exists
from embstore._engine.write.check_input import Casting
from embstore._engine.write.plans import IfExists
from embstore.cache.cache import Cache
from embstore.errors import ConfigMismatchError, DtypeError, ShapeError
from embstore.exchange.bulk_append import BulkAppend
from embstore.exchange.file_contents import ArrayFile, Unreadable, format_of, module_of
from embstore.exchange.import_options import ImportOptions
from embstore.exchange.interpret import table_of
from embstore.exchange.store_metadata import KeyOrder
from embstore.exchange.table import Table
from embstore.store.embedding_store import EmbeddingStore
from embstore.store.open import open as open_store

logger = logging.getLogger("embstore")

_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportResult(ShownAsText, PickledByName):
    """The result of an import.

    Attributes
    ----------
    path : Path
        Of the store.
    rows, skipped, replaced : int
        Numbers of rows: added (replacements included), already stored and left unchanged, and replaced.
    unreadable : tuple of Unreadable
        Entries that did not become rows: their keys as found, and the reasons.
    left_out : tuple of Unreadable
        Columns and attributes of the config that were not imported.
    config : Config
    seconds : float
    """

    path: Path
    rows: int
    skipped: int
    replaced: int
    unreadable: tuple[Unreadable, ...] = ()
    left_out: tuple[Unreadable, ...] = ()
    config: Config = data_field(repr=False)
    seconds: float

    @property
    def ok(self) -> bool:
        """True if everything was imported."""
        return not self.unreadable and not self.left_out

    @property
    def store(self) -> EmbeddingStore:
        """The store, opened for reading."""
        return open_store(self.path)

    def __str__(self) -> str:
        lines = [
            f"{self.rows:,} rows added, {self.replaced:,} replaced, {self.skipped:,} skipped, "
            f"{len(self.unreadable):,} unreadable, in {self.seconds:.3g} s",
            f"in {self.path}",
        ]
        for what, found in (("unreadable", self.unreadable), ("left out", self.left_out)):
            if found:
                more = len(found) - _SHOWN
                lines += [f"{what}:", *(f"  {one}" for one in found[:_SHOWN])]
                lines += [f"  and {more:,} more"] if more > 0 else []
        return "\n".join(lines)


def import_file(
    file: str | os.PathLike[str],
    dest: str | os.PathLike[str] | Cache,
    *,
    config: Mapping[str, Any] | None = None,
    format: str | None = None,
    field: str | None = None,
    fields: Mapping[str, FieldSpec] | None = None,
    columns: Sequence[str] | None = None,
    keys: KeyOrder | Callable[[Any], Key | str] | None = None,
    class_name: str = UNLABELLED,
    key_column: str | None = None,
    ragged: bool = False,
    casting: Casting = "no",
    if_exists: IfExists = "error",
    progress: Progress = None,
    **options: Any,
) -> ImportResult:
    """Add the rows of a file to a store, in one commit: all that can be read, or none.

    Parameters
    ----------
    file : path_like
        A file of `export_file`, or of another program, or a folder of numbered ``.npy`` files: see Notes.
    dest : path_like or Cache
        A store, which is made if it is absent, or a cache: the rows go to its store of this config.
    config : mapping, optional
        All that the values depend on. Required if the file does not state it.
    format : {"pt", "npz", "hdf5", "safetensors", "parquet"}, optional
        The default follows from the suffix.
    field : str, optional
        The only field to take, or a new name for the only field of the file.
    fields : mapping of str to FieldSpec, optional
        Fields of a new store, if the file does not state them: layer, pooling, dtype, and whether NaN is allowed.
    columns : sequence of str, optional
        The columns to take. The default is all.
    keys : {"file_id:class", "class:file_id", "class:file_name", "file_id"} or callable, optional
        How to read names with a colon, if the file states no class beside them. ``"file_id:class"`` splits at the last
        colon. ``"class:file_id"`` splits at the first. ``"class:file_name"`` does too, and removes the file's suffix.
        ``"file_id"`` does not split. Or a function of a name that returns its `Key`.
    class_name : str
        The class of file_ids without one, and of rows whose class is missing.
    key_column : str, optional
        The array or column that holds the keys. The default is one of the names under Notes.
    ragged : bool
        True to store rows that differ in their first axis alone as a ragged field. Otherwise they are unreadable.
    casting : {"no", "same_kind"}
        "same_kind" converts values of another dtype. float64 then becomes float32, unless `fields` has another dtype.
    if_exists : {"error", "skip", "replace"}
        The action for keys that are stored already.
    progress : callable or bool, optional
        A function of (done, total), True for a bar, or False for none. Default: a bar at a terminal and in Jupyter, if
        tqdm is installed.
    **options
        Options of a new store, as for `embstore.open`.

    Returns
    -------
    ImportResult
        A row that can't be used (no key, a repeated key, another shape, NaN) is listed in `unreadable`. The others are
        imported.

    Raises
    ------
    UnknownFormatError, MissingLibraryError
    FileFormatError, UnsafeFileError
        The file is broken or not understood, or reading it could run code. Or a name has a colon, and neither the file
        nor `keys` states which part is the class. No row was added.
    ConfigMismatchError
        The config of the file differs from `config`, or that of the store from both.
    TypeError
        Neither the file nor `config` states a config.
    FieldMismatchError, UnknownFieldError, UnknownColumnError, DtypeError, ShapeError
        The store has other fields or columns.
    KeysExistError

    Notes
    -----
    ``.pt`` and ``.pth`` are dictionaries of tensors: see `embstore.exchange.pt`. In the others, an array ``keys``,
    ``key``, ``ids`` or ``id``, or ``file_id`` with or without ``class_name``, holds the names of the rows; arrays of
    two axes and more, of as many rows, are fields, those of one are columns. An array ``file_id`` is read as
    ``keys="file_id"`` unless `keys` says otherwise. Or each array is a row with its name as key, a file_id if without a
    colon. Such arrays must be alike, unless `keys` states that names are keys.

    A folder has ``.npy`` files beside ``.parquet`` files of the same numbers, as clip-retrieval and LAION write them
    (the column ``image_path`` holds the keys if no other does), or a folder a class with a ``manifest.json``.
    """
    start = time.perf_counter()
    if if_exists not in ("error", "skip", "replace"):
        raise ValueError(f"expected if_exists 'error', 'skip' or 'replace', found {if_exists!r}")
    check_progress(progress)
    for name, text in (("field", field or ""), ("class_name", class_name), ("key_column", key_column or "")):
        if not isinstance(text, str):
            raise TypeError(f"expected {name} to be text, found {text!r:.200}")
    path = local_path(file).absolute()
    how = ImportOptions(
        field=plain_text(field),
        columns=None if columns is None else tuple(text_list("columns", columns, in_order=False)),
        keys=keys,
        class_name=plain_text(class_name),
        key_column=plain_text(key_column),
        ragged=ragged,
        casting=casting,
    )
    kind = "npy" if format is None and path.is_dir() else format_of(path, format)
    with _opened(path, kind, how) as table:
        given = _config(table, config)
        append = BulkAppend(table, if_exists, casting)  # reads all keys, before a store is made
        if isinstance(dest, Cache):
            there, opening = dest.has_store(dest.path_of(given)), functools.partial(dest.open, given)
        else:
            place = dest if is_url(dest) else local_path(dest)
            there = exists(place, options.get("storage_options"))
            opening = functools.partial(open_store, dest, config=given)
        store = opening("r+", **options) if there else None
        held = {} if store is None else store.fields
        specs = held or {name: _spec(table, name, (fields or {}).get(name), casting) for name in table.fields}
        if store is None:
            made = {"fields": specs, "columns": table.columns, "expected_rows": table.rows}
            store = opening("a", **{**made, **options})
        with store, reporting(progress, table.rows, path.name) as advance:
            result = append.run(store, specs, advance)
    if isinstance(dest, Cache):
        dest.prune_after(store.path)
    if table.file.unreadable:
        logger.warning("%s: %d of its entries did not become rows", path, len(table.file.unreadable))
    return ImportResult(
        path=store.path,
        rows=result.appended,
        skipped=result.skipped,
        replaced=result.replaced,
        unreadable=tuple(table.file.unreadable),
        left_out=tuple(table.file.left_out),
        config=given,
        seconds=time.perf_counter() - start,
    )


@contextlib.contextmanager
def _opened(path: Path, kind: str, options: ImportOptions) -> Iterator[Table]:
    """Open a file, and return its rows."""
    if kind in ("pt", "npy"):
        table: Table = module_of(kind).read_table(path, options)
        with contextlib.closing(table.file):
            yield table
        return
    file: ArrayFile = module_of(kind).File(path)
    with contextlib.closing(file):
        yield table_of(file, options)


def _config(table: Table, given: Mapping[str, Any] | None) -> Config:
    """Return the config of the file, or the given one."""
    if given is None:
        if table.file.config is None:
            raise TypeError(f"{table.path} does not state the config that its values depend on: pass config=")
        return table.file.config
    config = given if isinstance(given, Config) else Config(given)
    if table.file.config is not None and (differences := config.diff(table.file.config)):
        raise ConfigMismatchError(table.path, differences)
    return config


def _spec(table: Table, name: str, declared: FieldSpec | None, casting: Casting) -> FieldSpec:
    """Return the spec of a field of a new store."""
    found = table.fields[name]
    if table.file.metadata is not None:
        return found
    if declared is not None:
        if (declared.shape, declared.ragged) != (found.shape, found.ragged):
            raise ShapeError(name, expected=declared, found=found)
        return declared
    if found.dtype == "float64":
        if casting == "no":
            hint = 'pass casting="same_kind" to convert it to float32, or fields= to keep it'
            raise DtypeError(name, expected="float32, float16, bfloat16 or integers", found=found.dtype, hint=hint)
        return replace(found, dtype="float32")
    return found

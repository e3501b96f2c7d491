"""A table of files or texts: CSV, Parquet, or a table in memory."""

from __future__ import annotations

import csv
import functools
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from itertools import repeat
from pathlib import Path, PurePosixPath
from typing import Any, Final, NoReturn

import numpy as np

from embstore._engine.format.arguments import text_list
from embstore._engine.format.keys import Key
from embstore._engine.format.record import Origin
from embstore._engine.format.text import plain_text
from embstore._engine.io.urls import local_path
from embstore.errors import EmptySourceError, KeyFormatError, SampleError, SourceError, UnknownColumnError
from embstore.sources.base import FileSample, checked_name, distinct, file_sample
from embstore.sources.folder import without_suffix
from embstore.sources.items import LoadedSample

_DELIMITERS: Final = {".csv": ",", ".tsv": "\t"}
_PARQUET: Final = ".parquet"
_LARGEST_WHOLE: Final = 2**53  # larger floats are not exact integers


def refused(reason: str) -> NoReturn:
    """Raise SampleError. Samples without content use this function as `load`. The caller adds the place."""
    raise SampleError(None, reason)


def text_of(value: Any) -> str:
    """Return a value if it is text.

    Raises
    ------
    SampleError
        The value is not text.
    """
    if not isinstance(value, str):
        refused(f"expected text, found {'nothing' if _is_missing(value) else type(value).__name__}")
    return value


def as_text(value: Any) -> str:
    """Return a cell as a part of a key: whole numbers without a decimal point, missing values as empty text.

    Raises
    ------
    KeyFormatError
        The cell has several values, or bytes.

    Examples
    --------
    >>> as_text(3.0), as_text(float("nan"))
    ('3', '')
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return plain_text(value)
    if _is_missing(value):
        return ""
    several = hasattr(value, "__len__") or hasattr(value, "__iter__")
    if several or (isinstance(value, Enum) and not isinstance(value, int)):  # "Label.DOG" is no class
        raise KeyFormatError(value, f"expected text or a number, found {type(value).__name__}")
    # Integers beside missing values become floats in many tables.
    if isinstance(value, float) and value.is_integer() and abs(value) <= _LARGEST_WHOLE:
        return str(int(value))
    return str(value)


def key_of(file_id: Any, class_name: Any) -> Key:
    """Return the key of two cells. Without a class, the key is the bare file_id.

    Raises
    ------
    KeyFormatError
    """
    return Key.parse(Key(as_text(file_id), as_text(class_name) or None))


def _is_missing(value: Any) -> bool:
    """Return True for None, NaN, and pandas' NA and NaT, some of which can't be compared."""
    return value is None or type(value).__name__ in ("NAType", "NaTType") or (value != value) is True


def row_values(columns: Mapping[str, Iterable[Any]]) -> Iterator[dict[str, Any] | None]:
    """Yield the values of each row by the names of their columns, with None for missing ones. Without columns, None."""
    if not columns:
        yield from repeat(None)
    listed = [_without_missing(values if isinstance(values, list) else list(values)) for values in columns.values()]
    for row in zip(*listed, strict=True):
        yield dict(zip(columns, row, strict=False))


def _without_missing(values: list[Any]) -> list[Any]:
    """Return values with None for missing ones. A look at each takes a second for a million, so most are not copied."""
    if set(map(type, values)) <= {str, int, bool, float} and all(map(operator.eq, values, values)):
        return values
    return [None if _is_missing(value) else value for value in values]


class Table:
    """The files that a table lists, or the texts in a table. Each iteration reads the table again.

    Parameters
    ----------
    table : path_like, DataFrame, mapping or list
        A ``.csv`` or ``.tsv`` file (UTF-8, with a header) or ``.parquet``, a DataFrame of pandas or polars, a mapping
        of columns, or a list of rows, each a mapping.
    name : str
        Name of the data set.
    path, text : str
        Column of files, relative to `root`, or of texts. Exactly one of the two is required.
    class_name : str, optional
        Column of classes. Rows without a class, and all rows without this column, have bare file_ids as keys.
    file_id : str, optional
        Column of file_ids. The default for files is the relative path without its last suffix.
    columns : sequence of str
        Columns whose values become columns of the store. Those of a text file are texts. Rows with a missing
        value have the fill of the column.
    root : path_like, optional
        Folder of relative paths. The default is the table's folder, or the working directory for a table in memory.
    delimiter : str, optional
        Delimiter of a text file. The default follows from its suffix.

    Attributes
    ----------
    name : str
    root : Path
        Absolute.
    whole : bool
        True: it lists all samples of the data set. Set it to False for a table of some of them.
    origin : Origin
        Of files their root, of texts the file of the table.

    Raises
    ------
    ValueError
        Neither or both of `path` and `text` are given, `text` is given without `file_id`, or the file has another
        suffix. On iteration: the file is not UTF-8.
    UnknownColumnError, EmptySourceError, SourceError, DuplicateKeysError
        On iteration. Messages count rows from 1, without the header.

    Notes
    -----
    A listed file that does not exist is a sample that can't be read, so a run reports it.

    Examples
    --------
    >>> rows = [{"id": 1, "says": "It barks.", "label": "dog"}, {"id": 2, "says": "It purrs.", "label": None}]
    >>> table = Table(rows, name="pets", text="says", class_name="label", file_id="id")
    >>> [(str(sample.key), sample.read().value) for sample in table]
    [('1:dog', 'It barks.'), ('2', 'It purrs.')]
    """

    whole = True

    def __init__(
        self,
        table: Any,
        *,
        name: str,
        path: str | None = None,
        text: str | None = None,
        class_name: str | None = None,
        file_id: str | None = None,
        columns: Sequence[str] = (),
        root: str | os.PathLike[str] | None = None,
        delimiter: str | None = None,
    ) -> None:
        self.name = checked_name(name)
        if (path is None) == (text is None):
            raise ValueError('expected either path="the column of files" or text="the column of texts"')
        if text is not None and file_id is None:
            raise ValueError(
                "name a file_id column: a row's number changes when the table is edited, and would then stand "
                "for another text"
            )
        self._file = local_path(table).absolute() if isinstance(table, str | os.PathLike) else None
        self._read = _reader(table, self._file, delimiter)
        self._kind = type(table).__name__
        self._path, self._text, self._class_name, self._file_id = path, text, class_name, file_id
        self._columns = text_list("columns", columns)
        default = self._file.parent if self._file is not None else Path()
        self.root = (local_path(root) if root is not None else default).absolute()
        place = self._file if text is not None else self.root
        self.origin = Origin(kind="table", root=None if place is None else str(place))

    def __iter__(self) -> Iterator[FileSample | LoadedSample]:
        hint = "give these rows an id, or name another column with file_id="
        twice = "name a column that differs in each row with file_id="
        return distinct(self._found(), empty="it has no rows", path=self._file, hint=hint, twice=twice)

    def _found(self) -> Iterator[tuple[str, Callable[..., tuple[Key, FileSample | LoadedSample]], tuple[Any, ...]]]:
        wanted = (self._text if self._path is None else self._path, self._class_name, self._file_id)
        names = [*(column for column in wanted if column is not None), *self._columns]
        columns: dict[str | None, Iterable[Any]] = {None: repeat(None)}
        columns |= zip(names, self._read(names), strict=True)
        title = self._file.name if self._file is not None else "the table"
        rows = zip(*(columns[column] for column in wanted), strict=False)
        more = row_values({name: columns[name] for name in self._columns})
        for number, (row, values) in enumerate(zip(rows, more, strict=False), 1):
            place = f"row {number} of {title}"
            if self._path is None:
                yield place, self._text_sample, (place, *row, values)
            else:
                yield f"{place} ({row[0]})", self._file_sample, (place, *row, values)

    def _text_sample(
        self, place: str, text: Any, label: Any, file_id: Any, values: Mapping[str, Any] | None
    ) -> tuple[Key, LoadedSample]:
        key = key_of(file_id, label)
        return key, LoadedSample(key, place, functools.partial(text_of, text), "text", values)

    def _id_of(self, relative: str) -> str:
        """Return a file's default file_id: its path below the root, which does not depend on the machine."""
        path = PurePosixPath(relative)
        if path.is_absolute() and path.is_relative_to(self.root.as_posix()):
            path = path.relative_to(self.root.as_posix())
        return without_suffix(str(path)) if relative else ""

    def _file_sample(
        self, place: str, value: Any, label: Any, file_id: Any, values: Mapping[str, Any] | None
    ) -> tuple[Key, FileSample | LoadedSample]:
        """Return the sample of a listed file. If the file does not exist, reading the sample raises."""
        relative = as_text(value)
        key = key_of(self._id_of(relative) if self._file_id is None else file_id, label)
        if not relative:
            return key, LoadedSample(key, place, functools.partial(refused, "no file is named"), columns=values)
        return key, file_sample(key, self.root / relative, root=self.root, columns=values)

    def __repr__(self) -> str:
        return f"<Table {self.name!r}: {self._kind if self._file is None else repr(str(self._file))}>"


# -- readers of tables: they return the values of the named columns as lists -----------------------


def _reader(table: Any, file: Path | None, delimiter: str | None) -> Callable[[Sequence[str]], list[list[Any]]]:
    suffix = file.suffix.lower() if file is not None else None
    if delimiter is not None and (suffix is None or suffix == _PARQUET):
        raise ValueError("delimiter is for text files: .csv, .tsv")
    if file is not None:
        if suffix == _PARQUET:
            return functools.partial(_from_parquet, file)
        delimiter = delimiter or _DELIMITERS.get(suffix or "")
        if delimiter is None:
            raise ValueError(f"{file}: expected .csv, .tsv or .parquet, or delimiter= for another text file")
        return functools.partial(_from_csv, file, delimiter)
    if isinstance(table, Mapping) or (hasattr(table, "columns") and hasattr(table, "__getitem__")):
        return functools.partial(_from_columns, table)
    if isinstance(table, Sequence) and not isinstance(table, bytes) and all(isinstance(row, Mapping) for row in table):
        return functools.partial(_from_rows, table)
    raise TypeError(
        f"expected a path, a DataFrame, a mapping of columns or a list of rows (mappings), found {type(table).__name__}"
    )


def _check(names: Sequence[str], available: Sequence[Any], path: Path | None = None) -> None:
    """Raise an error for columns that are missing or occur twice."""
    for name in names:
        if name not in available:
            raise UnknownColumnError(name, map(str, available), path=path)
        if list(available).count(name) > 1:
            raise ValueError(f"{path or 'the table'} has several columns {name!r}")


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise EmptySourceError(path, "it is not a file" if path.exists() else "there is no such file")
    return path


def _from_csv(path: Path, delimiter: str, names: Sequence[str]) -> list[list[str]]:
    columns: list[list[str]] = [[] for _ in names]
    number, bad = 0, []
    with _existing(path).open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter=delimiter)
        try:
            header = next(rows, [])
            _check(names, header, path)
            places = [header.index(name) for name in names]
            for row in rows:
                if not row:  # an empty line
                    continue
                number += 1
                if len(row) != len(header):
                    bad.append(f"row {number} of {path} has {len(row)} cell(s), the header has {len(header)}")
                    continue
                for column, place in zip(columns, places, strict=True):
                    column.append(row[place])
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text, after row {number}: {error}") from error
        except csv.Error as error:  # usually a text longer than csv.field_size_limit()
            raise ValueError(f"{path}, after row {number}: {error}; see csv.field_size_limit") from error
    if bad:
        raise SourceError(path, bad, "repair these rows")
    return columns


def _from_parquet(path: Path, names: Sequence[str]) -> list[list[Any]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError("reading Parquet needs pyarrow: pip install 'embstore[tables]'") from error
    _check(names, parquet.read_schema(_existing(path)).names, path)
    # partitioning=None: otherwise a folder named "split=train" above the file becomes a column.
    table = parquet.read_table(path, columns=list(dict.fromkeys(names)), partitioning=None)
    return [table.column(name).to_pylist() for name in names]


def _from_columns(table: Any, names: Sequence[str]) -> list[list[Any]]:
    """Return columns of a mapping or a frame."""
    _check(names, list(table if isinstance(table, Mapping) else table.columns))
    columns = [_listed(table[name]) for name in names]
    lengths = {name: len(column) for name, column in zip(names, columns, strict=True)}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"expected columns of one length, found {lengths}")
    return columns


def _listed(values: Any) -> list[Any]:
    """Return a column's values as Python objects: by `tolist` of NumPy and pandas, or `to_list` of polars."""
    convert = getattr(values, "tolist", None) or getattr(values, "to_list", None)
    return list(convert() if convert is not None else values)


def _from_rows(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[list[Any]]:
    if rows:  # an empty list lacks no column
        _check(names, list(dict.fromkeys(name for row in rows for name in row)))
    return [[row.get(name) for row in rows] for name in names]

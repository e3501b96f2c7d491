"""A data set of Hugging Face `datasets`: the stored content, which `datasets` never decodes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

from embstore._engine.format.arguments import text_list
from embstore._engine.format.keys import Key
from embstore._engine.format.record import Origin
from embstore._engine.io.stamps import UNKNOWN
from embstore.errors import UnknownColumnError
from embstore.sources.base import FileSample, checked_name, distinct
from embstore.sources.folder import without_suffix
from embstore.sources.items import LoadedSample
from embstore.sources.table import key_of, refused, row_values, text_of

_FILES: Final = ("Audio", "Image")
_STRINGS: Final = ("string", "large_string", "string_view")
_BINARY: Final = ("binary", "large_binary", "binary_view")
_NAMELESS: Final = "name a file_id column: a row's number changes when the data set is filtered or shuffled"


class HFDataset:
    """The rows of one split of a `datasets.Dataset`.

    Content is loaded row by row, on demand. Formats and transforms of the data set are ignored. Reading needs neither
    torch nor torchcodec nor PIL.

    Parameters
    ----------
    dataset : datasets.Dataset
    name : str
        Name of the data set.
    content : str
        Column of texts, of bytes, or of the features `Audio` or `Image`, whose files are the content.
    class_name : str, optional
        Column of classes. The names of a `ClassLabel` are used. Rows without a class, and all rows without this
        column, have bare file_ids as keys.
    file_id : str, optional
        Column of file_ids. The default for `Audio` and `Image` is the file's name without folders (which differ from
        machine to machine) and without the last suffix.

    Attributes
    ----------
    name : str
    whole : bool
        True: it lists all samples of the data set. Set it to False for a selection of its rows.
    origin : Origin
        Builder, config and split, unless the caller made the rows.

    columns : sequence of str
        Columns whose values become columns of the store. Rows with a missing value have the fill of the column.

    Raises
    ------
    TypeError
        The data set has several splits or is streamed, or the content column has another type.
    UnknownColumnError
    ValueError
        Texts or bytes without `file_id`.
    SourceError, DuplicateKeysError, EmptySourceError
        On iteration. Messages number rows as Python does: ``name[0]`` is the first.
    """

    whole = True

    def __init__(
        self,
        dataset: Any,
        *,
        name: str,
        content: str,
        class_name: str | None = None,
        file_id: str | None = None,
        columns: Sequence[str] = (),
    ) -> None:
        self.name = checked_name(name)
        if isinstance(dataset, Mapping):
            raise TypeError(f"choose a split, as in dataset[...]: there are {', '.join(map(str, dataset))}")
        if not all(hasattr(dataset, word) for word in ("__len__", "features", "cast_column", "select_columns")):
            raise TypeError(
                f"expected a datasets.Dataset, found {type(dataset).__name__}; one that streams has no rows to come "
                f"back to: load it without streaming"
            )
        self._columns = text_list("columns", columns)
        for column in (content, class_name, file_id, *self._columns):
            if column is not None and column not in dataset.features:
                raise UnknownColumnError(column, dataset.features, path=None)
        feature = dataset.features[content]
        self._is_file = type(feature).__name__ in _FILES
        self._kind = type(feature).__name__.lower() if self._is_file else None
        dtype = getattr(feature, "dtype", None)
        if not self._is_file and dtype not in (*_STRINGS, *_BINARY):
            raise TypeError(f"{content!r}: expected texts, bytes, Audio or Image, found {feature}")
        if not self._is_file and file_id is None:
            raise ValueError(_NAMELESS)
        self._kind = "text" if dtype in _STRINGS else self._kind
        self._dataset = dataset.with_format(None)
        if self._is_file:
            self._dataset = self._dataset.cast_column(content, type(feature)(decode=False))
        self._rows = self._dataset.select_columns([content])
        self._load = _file_at if self._is_file else _text_at if dtype in _STRINGS else _bytes_at
        self._content, self._class_name, self._file_id = content, class_name, file_id
        info, place = dataset.info, {}
        if info.builder_name:
            place = {"builder": info.builder_name, "config": info.config_name, "split": dataset.split}
        self.origin = Origin(kind="huggingface", **place)

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[LoadedSample]:
        return distinct(self._found(), empty=f"{self.name} has no rows", hint=_NAMELESS, twice=_NAMELESS)

    def _found(self) -> Iterator[tuple[str, Callable[..., tuple[Key, LoadedSample]], tuple[Any, ...]]]:
        classes = None if self._class_name is None else self._named(self._class_name)
        more = row_values({name: self._named(name) for name in self._columns})
        for number, (file_id, values) in enumerate(zip(self._file_ids(), more, strict=False)):
            yield f"{self.name}[{number}]", self._sample, (number, file_id, classes and classes[number], values)

    def _sample(
        self, number: int, file_id: Any, label: Any, values: Mapping[str, Any] | None
    ) -> tuple[Key, LoadedSample]:
        key, load = key_of(file_id, label), functools.partial(self._load, self._rows, self._content, number)
        return key, LoadedSample(key, f"{self.name}[{number}]", load, self._kind, values)

    def _column(self, column: str) -> list[Any]:
        return list(self._dataset.select_columns([column])[:][column])

    def _named(self, column: str) -> list[Any]:
        """Return the values of a column, and of a `ClassLabel` their names."""
        values = self._column(column)
        names = getattr(self._dataset.features[column], "names", None)
        if names is None:
            return values
        return [names[value] if value is not None and value >= 0 else None for value in values]  # -1 is unlabelled

    def _file_ids(self) -> list[Any]:
        if self._file_id is not None:
            return self._column(self._file_id)
        # Read the paths alone, since their column also holds all the bytes.
        column = f"{self._content}.path"
        paths = self._rows.flatten().select_columns([column])[:][column]
        return [without_suffix(PurePosixPath(path or "").name) for path in paths]

    def __repr__(self) -> str:
        return f"<HFDataset {self.name!r}: {len(self)} row(s)>"


def _text_at(rows: Any, column: str, number: int) -> str:
    return text_of(rows[number][column])


def _bytes_at(rows: Any, column: str, number: int) -> bytes:
    value = rows[number][column]
    return value if isinstance(value, bytes) else refused("expected bytes, found nothing")


def _file_at(rows: Any, column: str, number: int) -> bytes:
    """Return the bytes of a file that the data set stores or names.

    Raises
    ------
    SampleError
    """
    found = rows[number][column] or {}
    if found.get("bytes") is not None:
        content: bytes = found["bytes"]
        return content
    if not found.get("path"):
        refused("it has neither bytes nor a path")
    if "://" in found["path"]:
        refused(f"it is not on this machine: {found['path']}")
    content = FileSample("", Path(found["path"]), UNKNOWN).read().value
    return content

"""Base of the three data sets: recordings listed by class, with fixed labels.

`listed` has the protocol of such a data set, `selection` chooses the recordings of a node. No recording is read here.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from embstore._engine.format.keys import Key
from embstore._engine.format.record import Origin
from embstore._engine.lazy import cached_property
from embstore.errors import EmptySourceError, UnknownClassError
from embstore.sources import FileSample
from embstore.sources.base import checked_name, distinct
from embstore_fl.datasets.listed import Listed, file_of
from embstore_fl.datasets.selection import Selected, Selection
from embstore_fl.errors import DatasetLayoutError

SUFFIX: Final = ".wav"


class AudioSource:
    """Recordings of one data set, as a source for `embstore.embed`.

    Parameters
    ----------
    root : path_like
    name : str, optional
        Name of the data set, used as the config's ``dataset``.

    Attributes
    ----------
    name : str
    root : Path
        Absolute.
    folds : tuple of int
        Folds of the layout.
    official_splits : tuple of str
        Splits made by the authors of the data set.

    Raises
    ------
    EmptySourceError
        `root` is not a folder.
    """

    default_name: ClassVar[str]
    unique_ids: ClassVar[bool] = True
    """Whether no two classes have a recording with the same file_id."""
    folds: tuple[int, ...] = ()
    official_splits: tuple[str, ...] = ()

    def __init__(self, root: str | os.PathLike[str], *, name: str | None = None) -> None:
        self.name = checked_name(self.default_name if name is None else name)
        self.root = Path(root).absolute()
        self.origin = Origin(kind="folder", root=str(self.root))
        if not self.root.is_dir():
            raise EmptySourceError(self.root, "it is a file" if self.root.exists() else "no such folder")

    @cached_property
    def labels(self) -> Mapping[str, int]:
        """Label of each class of the whole data set, independent of any selection."""
        raise NotImplementedError

    @property
    def classes(self) -> list[str]:
        """All classes, in the order of their labels."""
        return sorted(self.labels, key=self.labels.__getitem__)

    def listing(self, classes: Collection[str] | None = None) -> list[Listed]:
        """Return all recordings of these classes, sorted by class and file_id. No recording is opened.

        Parameters
        ----------
        classes : collection of str, optional
            Default: all classes.
        """
        raise NotImplementedError

    def details(self, listed: Listed) -> dict[str, Any]:
        """Return further metadata of a recording, such as its fold or its YouTube id."""
        return {}

    def names_of(self, classes: Iterable[str | int]) -> list[str]:
        """Return the names of classes that are given as names or labels, each once.

        Raises
        ------
        UnknownClassError
            The data set lacks some of them. The error names all of these.
        """
        by_label = {label: name for name, label in self.labels.items()}
        found: list[str] = []
        unknown: list[str] = []
        for given in classes:
            # `_label` refuses a bool, which is an int.
            name = self.class_name(given) if isinstance(given, str) else by_label.get(_label(given))
            if name in self.labels:
                found.append(str(name))
            else:
                unknown.append(str(given))
        if unknown:
            raise UnknownClassError(unknown, self.classes)
        return list(dict.fromkeys(found))

    def class_name(self, written: str) -> str:
        """Return the class's name in keys for a name as people write it."""
        return written

    @cached_property
    def _class_of_id(self) -> dict[str, str | None]:
        found: dict[str, str | None] = {}
        for listed in self.listing():
            found[listed.file_id] = None if listed.file_id in found else listed.class_name
        return found

    def class_of(self, file_id: str) -> str | None:
        """Return the class of a recording, or None if there is none or several classes may have this file_id."""
        return self._class_of_id.get(file_id) if self.unique_ids else None

    def select(self, **selection: Any) -> Selected:
        """Return a part of the data set as a source. See `Selection.of`."""
        return Selected(self, Selection.of(**selection))

    def sample(self, listed: Listed) -> FileSample:
        """Return the sample of a recording. Reading it raises if the file is missing."""
        return file_of(listed.key, listed.path)

    def samples_of(self, listed: Iterable[Listed], *, empty: str) -> Iterator[FileSample]:
        """Yield the samples of recordings, after a check that their keys are valid and different.

        Raises
        ------
        SourceError, DuplicateKeysError, EmptySourceError
        """
        return distinct(((one.path, self._keyed, (one,)) for one in listed), empty=empty, path=self.root)

    def _keyed(self, one: Listed) -> tuple[Key, FileSample]:
        return Key.parse(Key(one.file_id, one.class_name)), self.sample(one)

    def __iter__(self) -> Iterator[FileSample]:
        return self.samples_of(self.listing(), empty="it has no recordings")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}: {str(self.root)!r}>"


def _label(given: object) -> int:
    """Return an integer, also of NumPy's, as an int. Return -1, which is not a label, for anything else."""
    if isinstance(given, bool) or not hasattr(given, "__index__"):
        return -1
    return int(given.__index__())


def csv_lines(path: Path) -> list[list[str]]:
    """Read the lines of a CSV file in UTF-8, with or without a byte order mark.

    Raises
    ------
    DatasetLayoutError
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [line for line in csv.reader(file) if line]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DatasetLayoutError(path, f"not CSV in UTF-8: {error}") from error


def files_in(folder: str | os.PathLike[str], suffix: str = SUFFIX) -> list[str]:
    """Return the sorted names of files with a suffix in a folder. Empty if the folder is missing."""
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if e.name.lower().endswith(suffix) and not e.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_json(path: Path, kind: type) -> Any:
    """Read a JSON file whose top level is of type `kind`.

    Raises
    ------
    DatasetLayoutError
        The file is missing, is not JSON, or has another type.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DatasetLayoutError(path, "it is missing") from error
    except ValueError as error:
        raise DatasetLayoutError(path, f"it is not JSON: {error}") from error
    if not isinstance(found, kind):
        raise DatasetLayoutError(path, f"expected a {kind.__name__} in it, found {type(found).__name__}")
    return found

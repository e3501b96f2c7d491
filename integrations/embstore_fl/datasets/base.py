"""What the three data sets share: recordings that are listed by class, with labels that never change.

`listed` has the protocol of a data set that lists its recordings, `selection` chooses those of a node. No recording is
read here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final

from embstore._engine.io.stamps import UNKNOWN
from embstore.errors import EmptySourceError, UnknownClassError
from embstore.sources import FileSample
from embstore.sources.base import file_sample
from embstore.sources.items import checked_name, distinct, key_at
from embstore_fl.datasets.listed import Listed
from embstore_fl.datasets.selection import Selected, Selection
from embstore_fl.errors import DatasetLayoutError

SUFFIX: Final = ".wav"


class AudioSource:
    """Recordings of one data set, as a source for `embstore.embed`.

    Parameters
    ----------
    root : path_like
    name : str, optional
        Name of the data set: it becomes the config's ``dataset``.

    Attributes
    ----------
    name : str
    root : Path
        Absolute.
    folds : tuple of int
        Those that the layout has.
    official_splits : tuple of str
        Those that its authors made.
    """

    default_name: ClassVar[str]
    folds: tuple[int, ...] = ()
    official_splits: tuple[str, ...] = ()

    def __init__(self, root: str | os.PathLike[str], *, name: str | None = None) -> None:
        self.name = checked_name(self.default_name if name is None else name)
        self.root = Path(root).absolute()
        if not self.root.is_dir():
            raise EmptySourceError(self.root, "it is a file" if self.root.exists() else "there is no such folder")

    @cached_property
    def labels(self) -> Mapping[str, int]:
        """The label of each class of the whole data set, whichever of them are selected."""
        raise NotImplementedError

    @property
    def classes(self) -> list[str]:
        """All classes, by their labels."""
        return sorted(self.labels, key=self.labels.__getitem__)

    def listing(self, classes: Collection[str] | None = None) -> list[Listed]:
        """List all recordings of these classes: by class, and then by file_id. No file is opened."""
        raise NotImplementedError

    def details(self, listed: Listed) -> dict[str, Any]:
        """Return what else the data set says of a recording: such as its fold, or where on YouTube it is from."""
        return {}

    def names_of(self, classes: Iterable[str | int]) -> list[str]:
        """Return classes, given as names or labels, as names.

        Raises
        ------
        UnknownClassError
            Names all that the data set does not have.
        """
        by_label = {label: name for name, label in self.labels.items()}
        found: list[str] = []
        unknown: list[str] = []
        for given in classes:
            # A bool is an int, but no label.
            name = self.class_name(given) if isinstance(given, str) else by_label.get(_label(given))
            if name in self.labels:
                found.append(str(name))
            else:
                unknown.append(str(given))
        if unknown:
            raise UnknownClassError(unknown, self.classes)
        return list(dict.fromkeys(found))

    def class_name(self, written: str) -> str:
        """Return a class's name, as it stands in keys, from how people write it."""
        return written

    def select(self, **selection: Any) -> Selected:
        """Return a part of the data set as a source; see `Selection.of`."""
        return Selected(self, Selection.of(**selection))

    def sample(self, listed: Listed) -> FileSample:
        """Return the sample of a recording; where there is no file, one that can't be read."""
        path = Path(listed.path)
        try:
            return file_sample(listed.key, path, os.stat(listed.path))
        except OSError:
            return FileSample(listed.key, path, UNKNOWN)

    def samples_of(self, listed: Iterable[Listed], *, empty: str) -> Iterator[FileSample]:
        """Yield the samples of recordings, once their keys are known to be keys, and to differ.

        Raises
        ------
        KeyFormatError, DuplicateKeysError, EmptySourceError
        """
        found = ((self.sample(one), key_at(one.file_id, one.class_name, one.path), one.path) for one in listed)
        return distinct(found, empty=empty, path=self.root)

    def __iter__(self) -> Iterator[FileSample]:
        return self.samples_of(self.listing(), empty="there are no recordings in it")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}: {str(self.root)!r}>"


def _label(given: object) -> int:
    """Return a label, also of NumPy's; one that no class has, for anything else."""
    if isinstance(given, bool) or not hasattr(given, "__index__"):
        return -1
    return int(given.__index__())


def files_in(folder: str | os.PathLike[str], suffix: str = SUFFIX) -> list[str]:
    """Return the names of the files of a suffix in a folder, sorted; none, if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if e.name.lower().endswith(suffix) and not e.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_json(path: Path, kind: type) -> Any:
    """Read a JSON file that holds one thing of a kind.

    Raises
    ------
    DatasetLayoutError
        It is not there, not JSON, or holds something else.
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

"""A listed recording, and the protocol of a data set that lists recordings."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from embstore.sources import FileSample
from embstore.sources.base import file_sample


class Listed(NamedTuple):
    """A recording in the listing of its data set.

    Attributes
    ----------
    class_name, file_id : str
    path : str
    group : int, str or None
        Its fold, or its split by the data set's authors.
    about : tuple
        Further values of the layout. `AudioSource.details` names them.
    """

    class_name: str
    file_id: str
    path: str
    group: int | str | None = None
    about: tuple[Any, ...] = ()

    @property
    def key(self) -> str:
        """The text of its key."""
        return f"{self.file_id}:{self.class_name}"

    @property
    def audio_filename(self) -> str:
        """The file's name."""
        return os.path.basename(self.path)


def file_of(key: str, path: str | os.PathLike[str]) -> FileSample:
    """Return the sample of a file. Reading it raises if the file is missing."""
    return file_sample(key, Path(path))


class Catalog(Protocol):
    """A data set that lists its recordings by class. `AudioSource` is one."""

    name: str

    @property
    def labels(self) -> Mapping[str, int]:
        """Label of each class of the whole data set."""

    @property
    def classes(self) -> list[str]:
        """All classes, in the order of their labels."""

    @property
    def folds(self) -> tuple[int, ...]:
        """Folds of the layout."""

    @property
    def official_splits(self) -> tuple[str, ...]:
        """Splits made by the authors of the data set."""

    def listing(self, classes: Collection[str] | None = None) -> list[Listed]:
        """Return the recordings of these classes. Default: all classes."""

    def names_of(self, classes: Iterable[str | int]) -> list[str]:
        """Return the names of classes that are given as names or labels."""

    def samples_of(self, listed: Iterable[Listed], *, empty: str) -> Iterator[FileSample]:
        """Yield the samples of recordings."""

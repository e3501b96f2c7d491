"""A recording as its data set lists it, and the protocol of a data set that lists its recordings."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from embstore.sources import FileSample


class Listed(NamedTuple):
    """A recording as its data set lists it.

    Attributes
    ----------
    class_name, file_id : str
    path : str
    group : int, str or None
        Its fold, or the split that the data set's authors put it in.
    about : tuple
        What else its layout says of it; `AudioSource.details` gives names to it.
    """

    class_name: str
    file_id: str
    path: str
    group: int | str | None = None
    about: tuple[Any, ...] = ()

    @property
    def key(self) -> str:
        """Its key's text."""
        return f"{self.file_id}:{self.class_name}"

    @property
    def audio_filename(self) -> str:
        """The file's name."""
        return os.path.basename(self.path)


class Catalog(Protocol):
    """A data set that lists its recordings by class. `AudioSource` is one."""

    name: str

    @property
    def labels(self) -> Mapping[str, int]:
        """The label of each class of the whole data set."""

    @property
    def classes(self) -> list[str]:
        """All classes, by their labels."""

    @property
    def folds(self) -> tuple[int, ...]:
        """Folds of the layout."""

    @property
    def official_splits(self) -> tuple[str, ...]:
        """Splits that the authors of the data set made."""

    def listing(self, classes: Collection[str] | None = None) -> list[Listed]:
        """List the recordings of these classes; of all, by default."""

    def names_of(self, classes: Iterable[str | int]) -> list[str]:
        """Return classes, given as names or labels, as names."""

    def samples_of(self, listed: Iterable[Listed], *, empty: str) -> Iterator[FileSample]:
        """Yield the samples of recordings."""

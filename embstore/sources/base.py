"""What a source is: samples with their keys, their content, and a cheap way to tell whether that changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from embstore._engine.format.keys import Key
from embstore._engine.io.stamps import UNKNOWN, Stamp, settled, stamp_of
from embstore._engine.pickles import PickledByName
from embstore.errors import DuplicateKeysError, EmptySourceError, KeyFormatError, SampleError

_S = TypeVar("_S")


class Content(NamedTuple):
    """A sample's content, the digest of just this content, and the stamp of the file that it was read from."""

    value: Any
    digest: str
    stamp: Stamp = UNKNOWN


def digest_of(content: bytes | str) -> str:
    """Return the digest of a sample's content: BLAKE2b-128, 32 hexadecimal digits."""
    data = content.encode() if isinstance(content, str) else content
    return blake2b(data, digest_size=16).hexdigest()


class AnySample(Protocol):
    """One thing to encode, wherever it comes from."""

    @property
    def key(self) -> str | Key:
        """Its key."""

    @property
    def stamp(self) -> Stamp:
        """Of its file, as the source found it; `UNKNOWN` for what is no file."""

    @property
    def where(self) -> str:
        """Where it comes from, for people: a path, a row of a table."""

    def current_digest(self) -> str:
        """Return the digest of the content as it is now.

        Raises
        ------
        SampleError
        """

    def read(self) -> Content:
        """Read the content, with the digest and stamp of just this content.

        Raises
        ------
        SampleError
        """


@dataclass(frozen=True, slots=True)
class Sample(PickledByName):
    """One thing to encode.

    Attributes
    ----------
    key : str or Key
    load : callable
        Returns its content, which the encoder's `decode` takes; called only if the sample is to be encoded.
    digest : str
        Of the content that `load` returns; another one makes the stored row stale.
    """

    key: str | Key
    load: Callable[[], Any] = field(repr=False)
    digest: str

    @property
    def stamp(self) -> Stamp:
        """Unknown: there is no file whose size and mtime could be compared."""
        return UNKNOWN

    @property
    def where(self) -> str:
        """Where the content comes from, for people; the key, as nothing else is known."""
        return str(self.key)

    def current_digest(self) -> str:
        """Return the digest of the content as it is now."""
        return self.digest

    def read(self) -> Content:
        """Load the content."""
        return Content(self.load(), self.digest)


@dataclass(frozen=True, slots=True)
class FileSample:
    """A file to encode; its content is its bytes, and its digest is that of the very bytes that were read.

    Attributes
    ----------
    key : str or Key
    path : Path
    stamp : Stamp
        As the source found it.
    """

    key: str | Key
    path: Path
    stamp: Stamp

    @property
    def where(self) -> str:
        """The file's path."""
        return str(self.path)

    def current_digest(self) -> str:
        """Read the file and return the digest of its bytes.

        Raises
        ------
        SampleError
        """
        return self.read().digest

    def read(self) -> Content:
        """Read the file.

        Raises
        ------
        SampleError
            It can't be read, or it changed while it was.
        """
        now = time.time_ns()
        try:
            with self.path.open("rb") as file:
                before = os.fstat(file.fileno())
                data = file.read()
                after = os.fstat(file.fileno())
        except OSError as error:
            raise SampleError(self.path, error.strerror or str(error)) from error
        if len(data) != before.st_size or stamp_of(before) != stamp_of(after):
            raise SampleError(self.path, "it changed while it was read")
        stamp = stamp_of(before)
        return Content(data, digest_of(data), stamp if settled(stamp, now) else UNKNOWN)


def file_sample(key: str | Key, path: Path, found: os.stat_result | None = None) -> FileSample:
    """Return the sample of a file that is there.

    Raises
    ------
    SampleError
        It is not.
    """
    try:
        return FileSample(key, path, stamp_of(found or path.stat()))
    except OSError as error:
        raise SampleError(path, error.strerror or str(error)) from error


class Source(Protocol):
    """Where samples come from."""

    @property
    def name(self) -> str:
        """Name of the data set. It becomes the config's ``dataset``, so that no two share rows."""

    def __iter__(self) -> Iterator[AnySample]:
        """Iterate over the samples, without loading them."""


def samples_by_key(source: Source) -> dict[str, AnySample]:
    """Return the samples of a source by their keys.

    Raises
    ------
    DuplicateKeysError
        Two have one key; says where both are.
    KeyFormatError
    """
    found = ((sample, Key.parse(sample.key), sample.where) for sample in source)
    return {str(sample.key): sample for sample in distinct(found)}


def checked_name(name: str) -> str:
    """Return a data set's name.

    Raises
    ------
    TypeError, ValueError
        It is not text; it is empty.
    """
    if not isinstance(name, str):
        raise TypeError(f"expected the data set's name, found {type(name).__name__}")
    if not name.strip():
        raise ValueError(f"expected the data set's name, found {name!r}")
    return name


def key_at(file_id: str, class_name: str, where: object) -> Key:
    """Return the key of a sample.

    Raises
    ------
    KeyFormatError
        It can't have one; says where the sample is.
    """
    try:
        return Key.parse(Key(file_id, class_name))
    except KeyFormatError as error:
        # As repr: a name that is not UTF-8 could not even be printed.
        raise KeyFormatError(error.key, f"{error.reason}; found at {str(where)!r}") from error


def distinct(
    found: Iterable[tuple[_S, Key, str]], *, empty: str | None = None, path: Path | None = None
) -> Iterator[_S]:
    """Yield samples whose keys differ.

    Parameters
    ----------
    found : iterable of (sample, key, place)
        The place is for people.
    empty : str, optional
        Reason of the error if there are no samples. Without it, none is raised.
    path : Path, optional
        Where they come from.

    Raises
    ------
    DuplicateKeysError
        Two have one key; names the places of both.
    EmptySourceError
        There are none.
    """
    places: dict[Key, str] = {}
    for sample, key, place in found:
        if key in places:
            raise DuplicateKeysError([str(key)], path=path, found_at=(places[key], place))
        places[key] = place
        yield sample
    if not places and empty is not None:
        raise EmptySourceError(path, empty)

"""The protocols of sources and samples: keys, content, and a cheap check whether the content changed.

Names and keys of all sources are checked here too.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from embstore._engine.format.keys import Key
from embstore._engine.format.record import Origin
from embstore._engine.format.source_columns import GIVEN_KIND, with_kind
from embstore._engine.format.text import plain_text
from embstore._engine.io.stamps import UNKNOWN, FileStamp, file_stamp, settled
from embstore._engine.pickles import PickledByName
from embstore.errors import DuplicateKeysError, EmptySourceError, KeyFormatError, SampleError, SourceError

_S = TypeVar("_S")

_DIGEST_BYTES: Final = 16
_OBJECTS_PER_COLLECTION: Final = 100_000


class Content(NamedTuple):
    """A sample's content, the digest of this very content, and the stamp of the file that it was read from."""

    value: Any
    digest: str
    stamp: FileStamp = UNKNOWN


def digest_of(content: bytes | str) -> str:
    """Return the digest of a sample's content: BLAKE2b-128, 32 hexadecimal digits."""
    data = content.encode() if isinstance(content, str) else content
    return blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()


def stored_digest(sample: AnySample, content: Content) -> str:
    """Return the digest of a sample's content as it is stored, with its kind.

    Only the classes of embstore state a kind, each for itself: a class of a user that returns a part of a file, or that
    derives from one of these, may give the digest of the whole file.
    """
    own = vars(type(sample)).get("_stored_digest")
    return with_kind(GIVEN_KIND, content.digest) if own is None else str(own(sample, content))


class AnySample(Protocol):
    """One item to encode, from any source."""

    @property
    def key(self) -> str | Key:
        """Key of the sample."""

    @property
    def stamp(self) -> FileStamp:
        """Stamp of the file when the source found it. `UNKNOWN` for content that is not a file."""

    @property
    def where(self) -> str:
        """Origin as text: a path, a row of a table."""

    def current_digest(self) -> str:
        """Return the digest of the present content.

        Raises
        ------
        SampleError
        """

    def read(self) -> Content:
        """Read the content, with the digest and stamp of this very content.

        Raises
        ------
        SampleError
        """


def open_sample(sample: AnySample) -> contextlib.AbstractContextManager[Content]:
    """Open a sample for a decoder that reads only a part of a file. A sample that is not a file is read whole."""
    method = getattr(sample, "opened", None)
    return contextlib.nullcontext(sample.read()) if method is None else method()


@dataclass(frozen=True, slots=True)
class Sample(PickledByName):
    """One item to encode.

    Attributes
    ----------
    key : str or Key
    load : callable
        Returns the content, which the encoder's `decode` takes. Called only if the sample is to be encoded.
    digest : str
        Version of the content that `load` returns. Another one makes the stored row stale. Versions of two samples are
        not compared.
    columns : mapping of str to value, optional
        Values of the row's columns. None stands for no value.
    """

    key: str | Key
    load: Callable[[], Any] = field(repr=False)
    digest: str
    columns: Mapping[str, Any] | None = None

    @property
    def stamp(self) -> FileStamp:
        """Unknown, since no file has a size and mtime to compare."""
        return UNKNOWN

    @property
    def where(self) -> str:
        """The key, as the origin is not known."""
        return str(self.key)

    def current_digest(self) -> str:
        """Return the digest of the present content."""
        return self.digest

    def read(self) -> Content:
        """Load the content."""
        return Content(self.load(), self.digest)


@dataclass(frozen=True, slots=True)
class FileSample:
    """A file to encode. The content is the bytes of the file, and the digest is of the very bytes that were read.

    Attributes
    ----------
    key : str or Key
    path : Path
    stamp : FileStamp
        Stamp when the source found the file.
    columns : mapping of str to value, optional
        Values of the row's columns. None stands for no value.
    """

    key: str | Key
    path: Path
    stamp: FileStamp
    columns: Mapping[str, Any] | None = None

    @property
    def where(self) -> str:
        """The file's path."""
        return str(self.path)

    def _stored_digest(self, content: Content) -> str:
        return with_kind("bytes", content.digest)

    def current_digest(self) -> str:
        """Return the digest of the file's bytes. The file is read a block at a time.

        Raises
        ------
        SampleError
        """
        with self.opened() as content:
            return content.digest

    def read(self) -> Content:
        """Read the file.

        Raises
        ------
        SampleError
            The file can't be read, or it changed while it was read.
        """
        with self._open() as (file, stamp):
            data = file.read()
            return Content(data, digest_of(data), stamp)

    @contextlib.contextmanager
    def opened(self) -> Iterator[Content]:
        """Open the file, for a decoder that reads only a part of it. The value is the open file.

        Raises
        ------
        SampleError
            The file can't be read, or it changed while it was open.
        """
        with self._open() as (file, stamp):
            digest = file_digest(file, lambda: blake2b(digest_size=_DIGEST_BYTES)).hexdigest()
            file.seek(0)
            yield Content(file, digest, stamp)
            file.seek(0, os.SEEK_END)

    @contextlib.contextmanager
    def _open(self) -> Iterator[tuple[io.BufferedReader, FileStamp]]:
        """Open the file, with its stamp. Raise SampleError if it changed in between, or was not read to its end."""
        now = time.time_ns()
        try:
            file = open(self.path, "rb", opener=_without_waiting)  # noqa: SIM115 # closed below
        except (OSError, ValueError) as error:  # ValueError: no file can have this name
            raise SampleError(self.path, getattr(error, "strerror", None) or str(error)) from error
        with file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):  # reading a pipe might never end
                raise SampleError(self.path, "it is not a file")
            stamp = file_stamp(os.path.dirname(self.path), before).at_place_of(self.stamp)
            try:
                yield file, stamp if settled(stamp.mtime, now) else stamp._replace(size=-1, mtime=-1)
                after = os.fstat(file.fileno())
                changed = file.tell() != before.st_size or (after.st_size, after.st_mtime_ns) != stamp[:2]
            except OSError as error:
                raise SampleError(self.path, error.strerror or str(error)) from error
        if changed:
            raise SampleError(self.path, "it changed while it was read")


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # otherwise opening a pipe waits for its writer


def file_sample(
    key: str | Key,
    path: Path,
    look: Callable[[], os.stat_result] | None = None,
    *,
    root: Path | None = None,
    columns: Mapping[str, Any] | None = None,
) -> FileSample:
    """Return the sample of a file. If the file does not exist, reading the sample raises, so a run goes on.

    Parameters
    ----------
    key : str or Key
    path : Path
    look : callable, optional
        Returns the status of the file.
    root : Path, optional
        Folder of the source. By default the folder of the file.
    columns : mapping, optional
    """
    try:
        return FileSample(key, path, file_stamp(os.fspath(root or path.parent), (look or path.stat)()), columns)
    except (OSError, ValueError):  # a broken link, removed just now, or a name that no file can have
        return FileSample(key, path, UNKNOWN, columns)


_CODE_ERRORS: Final = (TypeError, AttributeError, NameError, ImportError, NotImplementedError, AssertionError)
"""Errors of code or of the installation, which every sample would raise."""


def sample_error(error: Exception, sample: AnySample) -> SampleError:
    """Return the error of reading or decoding one sample as SampleError, with which a run goes on.

    Errors of the code are raised again. They name the sample in a note.
    """
    if isinstance(error, SampleError):
        return error
    if isinstance(error, _CODE_ERRORS):
        with naming(f"the sample is {sample.key} ({sample.where})"):
            raise error
    return SampleError(None, f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


@contextlib.contextmanager
def naming(what: str) -> Iterator[None]:
    """Add a note to an error of a caller's function, which does not know the sample."""
    try:
        yield
    except Exception as error:
        error.add_note(what)
        raise


class Source(Protocol):
    """An iterable of samples with a name.

    A source may also have `whole`, True if it lists all samples of its data set, and `origin`, an `Origin`. Rows move
    from keys that are gone to new ones only if the source is whole. `Folder`, `Table`, `HFDataset` and `Items` are,
    until their `whole` is set to False: rows of other samples are then neither reported nor deleted.
    """

    @property
    def name(self) -> str:
        """Name of the data set. It becomes the config's ``dataset``, so two data sets never share rows."""

    def __iter__(self) -> Iterator[AnySample]:
        """Iterate over the samples, without loading them."""


def origin_of(source: Source) -> Origin:
    """Return the origin that a source states, or else its class, without a root."""
    stated = getattr(source, "origin", None)
    return stated if isinstance(stated, Origin) else Origin(kind=type(source).__name__)


def samples_by_key(source: Source) -> dict[str, AnySample]:
    """Return the samples of a source by their keys.

    Raises
    ------
    TypeError
        It is not a source, or does not have samples.
    DuplicateKeysError
        Samples have one key. The error states the origin of the first two.
    SourceError
        Samples have no valid key.
    """
    if isinstance(source, type) or not (isinstance(getattr(source, "name", None), str) and hasattr(source, "__iter__")):
        raise TypeError(
            f"expected a source with a name, found {type(source).__name__}; for content in memory pass "
            f"embstore.sources.Items(…, name=…), for files embstore.sources.Folder or Table"
        )
    with _rare_collections():
        return dict(distinct((_where(sample), _keyed, (sample,)) for sample in source))


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    """Let Python look for cyclic garbage rarely while millions of objects are made that all stay.

    It walked over all of them again and again, which took a quarter of the time of listing a million rows. It is not
    turned off: a user's source may make garbage.
    """
    first, *others = gc.get_threshold()
    if not 0 < first < _OBJECTS_PER_COLLECTION:  # turned off, or set by a run in another thread
        yield
        return
    gc.set_threshold(_OBJECTS_PER_COLLECTION, *others)
    try:
        yield
    finally:
        gc.set_threshold(first, *others)


def _where(sample: Any) -> str:
    if not hasattr(sample, "key"):
        raise TypeError(f"expected samples in the source, such as embstore.Sample, found {type(sample).__name__}")
    return str(sample.where)


def _keyed(sample: AnySample) -> tuple[Key, tuple[str, AnySample]]:
    key = Key.parse(sample.key)
    return key, (str(key), sample)


def checked_name(name: str) -> str:
    """Return a data set's name.

    Raises
    ------
    TypeError, ValueError
        The name is not text, or it is empty.
    """
    if not isinstance(name, str):
        raise TypeError(f"expected the data set's name, found {type(name).__name__}")
    if not name.strip():
        raise ValueError(f"expected the data set's name, found {name!r}")
    return plain_text(name)


def distinct(
    found: Iterable[tuple[str, Callable[..., tuple[Key, _S]], tuple[Any, ...]]],
    *,
    empty: str | None = None,
    path: Path | None = None,
    hint: str = "rename or remove them",
    twice: str = "",
) -> Iterator[_S]:
    """Yield samples whose keys are valid and differ. One error at the end names all others.

    Parameters
    ----------
    found : iterable of (place, function, arguments)
        The place is text for messages. The function returns a key and a sample, or raises KeyFormatError.
    empty : str, optional
        Reason of the EmptySourceError. By default an empty iterable is accepted.
    path : Path, optional
        Path of the source, for messages.
    hint, twice : str
        Advice for samples without a key, and for samples of one key.

    Raises
    ------
    SourceError
        Samples have no key.
    DuplicateKeysError
        Samples have one key. The error names the places of the first two.
    EmptySourceError
        `found` is empty.
    """
    places: dict[Key, str] = {}
    problems: list[str] = []
    repeated: dict[Key, tuple[str, str]] = {}
    for place, make, arguments in found:
        try:
            key, sample = make(*arguments)
        except KeyFormatError as error:
            problems.append(f"{place}: {error.reason}")
            continue
        except Exception as error:  # a `with naming` for each sample took a quarter of the time of listing texts
            error.add_note(f"found at {place!r}")
            raise
        if key in places:
            repeated.setdefault(key, (places[key], place))
        else:
            places[key] = place
            yield sample
    if problems:
        raise SourceError(path, problems, hint)
    if repeated:
        first, *_ = repeated.values()
        raise DuplicateKeysError(map(str, repeated), path=path, found_at=first, hint=twice)
    if not places and empty is not None:
        raise EmptySourceError(path, empty)

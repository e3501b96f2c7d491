"""A store's folder at a URL: several files at once, and again after a failed connection.

`object_store` and `fsspec_files` fetch one file. No body is read further than the largest allowed size of the file.
`chunks` and `snapshot` check the content. This module writes nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import PurePath
from typing import Any, Final, Protocol, TypeVar

from embstore._engine.io.folder import Signature, check_name
from embstore._engine.io.fsspec_files import FsspecFiles
from embstore._engine.io.object_store import ObjectStore
from embstore._engine.io.threads import ThreadLock, forks, in_turn
from embstore._engine.io.urls import RefusedError, Url, detail, without_secrets
from embstore.errors import CorruptStoreError, RemoteError

logger = logging.getLogger("embstore")

T = TypeVar("T")

_ATTEMPTS: Final = 4
_FIRST_PAUSE: Final = 0.1  # seconds, doubled each time


class Files(Protocol):
    """The files below a URL."""

    @property
    def at_once(self) -> int:
        """Most files to fetch at once."""

    def get(self, name: str, most: int, into: memoryview) -> tuple[int, memoryview]:
        """Fetch a file at a relative path. Return its size, and the bytes that follow those in `into`."""


class Connection:
    """The files below a URL. It is made anew in a forked process.

    Attributes
    ----------
    last_read : object
        Token that changes with each fetch of a chunk, before its content is returned.
    """

    __slots__ = ("_files", "_forks", "last_read", "options", "url")

    def __init__(self, url: str, options: Mapping[str, Any] | None) -> None:
        self.url = url
        self.options = dict(options or {})
        self.last_read: object = None
        self._connect()

    def _connect(self) -> None:
        self._files: Files = ObjectStore.connect(self.url, self.options) or FsspecFiles(self.url, self.options)
        self._forks = forks()

    @property
    def files(self) -> Files:
        """The files, as this process reads them."""
        if self._forks != forks():
            self._connect()
        return self._files


class RemoteFolder:
    """A folder at a URL. It can be read but not listed, and its files have no descriptors."""

    __slots__ = ("_children", "_connection", "_max_signed_bytes", "_prefix", "path")

    def __init__(self, connection: Connection, path: PurePath, prefix: str, max_signed_bytes: int) -> None:
        self.path = path
        self._connection = connection
        self._prefix = prefix
        self._max_signed_bytes = max_signed_bytes
        self._children: dict[str, RemoteFolder] = {}

    @classmethod
    def open(cls, url: str, options: Mapping[str, Any] | None = None, *, max_signed_bytes: int) -> RemoteFolder:
        """Return the folder at a URL.

        Parameters
        ----------
        url : str
        options : mapping, optional
            Credentials, endpoints, timeouts, by the names of fsspec or of obstore.
        max_signed_bytes : int
            Largest size in bytes of a file whose signature is asked for.
        """
        return cls(Connection(url, options), Url.shown(url), "", max_signed_bytes)

    def child(self, name: str) -> RemoteFolder:
        """Return the folder `name` in this one. It need not exist."""
        check_name(self.path, name)
        if name not in self._children:
            child = RemoteFolder(self._connection, self.path / name, f"{self._prefix}{name}/", self._max_signed_bytes)
            self._children[name] = child
        return self._children[name]

    @property
    def origin(self) -> tuple[str, dict[str, Any] | None]:
        """The URL and the options as they were passed, without credentials: pickles hold them."""
        return self._connection.url, without_secrets(self._connection.options)

    @property
    def last_read(self) -> object:
        """Token that changes after each fetch of chunks."""
        return self._connection.last_read

    def replaced(self) -> bool:
        """Return False. Only the record's generation shows a replaced store."""
        return False

    def signature(self, name: str) -> Signature:
        """Return the size and a digest of the file's content, which is fetched for that."""
        return next(self.contents([name], lambda _, data: _signature(data), most=self._max_signed_bytes))

    def read(self, name: str, *, most: int) -> bytes:
        """Read the whole file `name`, which may have at most `most` bytes."""
        return next(self.contents([name], lambda _, data: bytes(data), most=most))

    def read_marked(self, name: str, parse: Callable[[PurePath, bytes], T], *, most: int) -> tuple[Signature, T]:
        """Read a whole file in one fetch. Return its `signature`, and its content as `parse` returns it."""

        def marked(path: PurePath, data: bytes | memoryview) -> tuple[Signature, T]:
            return _signature(data), parse(path, bytes(data))

        return next(self.contents([name], marked, most=most))

    def contents(
        self,
        names: Iterable[str],
        parse: Callable[[PurePath, bytes | memoryview], T],
        *,
        most: int,
        held: int | None = None,
    ) -> Iterator[T]:
        """Fetch whole files, several at once, and yield the content of each in turn as `parse` returns it.

        A file that fails, or that `parse` finds broken, is fetched again, up to four times in all. The files in flight
        together have at most 256 MiB, unless one file alone is larger.

        Raises
        ------
        FileNotFoundError, RemoteError, CorruptStoreError
        """
        held = most if held is None else held
        usual, alone = min(most, held), ThreadLock()

        def fetch(name: str) -> T:
            check_name(self.path, name)
            try:
                return self._fetched(name, parse, usual, most)
            except _LongerError:
                with alone():
                    return self._fetched(name, parse, most, most)

        return in_turn(fetch, names, held=held, threads=self._connection.files.at_once)

    def fill(
        self,
        parts: Iterable[tuple[str, memoryview]],
        check: Callable[[PurePath, memoryview, memoryview], None],
        *,
        nbytes: int,
    ) -> None:
        """Fetch whole files, several at once, whose first bytes go into a buffer each, without another copy.

        Parameters
        ----------
        parts : iterable of (str, memoryview)
            Name and buffer.
        check : callable
            Takes the path of a file, the buffer, and the bytes that follow. It raises CorruptStoreError for a file
            that is to be fetched again.
        nbytes : int
            Size of each file.

        Raises
        ------
        FileNotFoundError, RemoteError, CorruptStoreError
        """

        def fetch(part: tuple[str, memoryview]) -> None:
            name, buffer = part
            check_name(self.path, name)

            def checked(path: PurePath, rest: memoryview) -> None:
                check(path, buffer, rest)

            self._fetched(name, checked, nbytes, nbytes, buffer)

        for _ in in_turn(fetch, parts, held=nbytes, threads=self._connection.files.at_once):
            pass

    def _fetched(
        self,
        name: str,
        parse: Callable[[PurePath, memoryview], T],
        usual: int,
        most: int,
        into: memoryview = memoryview(b""),  # noqa: B008 # nothing changes it
    ) -> T:
        """Fetch a file, and again if that fails or if `parse` finds it broken.

        Raises
        ------
        _LongerError
            It has more than `usual` bytes, and may have `most`.
        """
        path = self.path / name
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                size, rest = self._content(name, usual, into, attempt)
                if usual < size and usual < most:
                    raise _LongerError
                if size > most:
                    raise CorruptStoreError(path, f"expected at most {most:,} bytes, found more")
                if size < len(into):
                    raise CorruptStoreError(path, f"expected at least {len(into):,} bytes, found {size:,}")
                return parse(path, rest)
            except (CorruptStoreError, RemoteError) as error:
                if attempt == _ATTEMPTS or isinstance(error.__cause__, RefusedError):
                    raise
                logger.info("%s: fetched again, since %s", path, error)
            time.sleep(_FIRST_PAUSE * 2 ** (attempt - 1))
        raise AssertionError("the last attempt returns or raises")

    def _content(self, name: str, most: int, into: memoryview, attempt: int) -> tuple[int, memoryview]:
        """Fetch a file once."""
        path = self.path / name
        try:
            found = self._connection.files.get(f"{self._prefix}{name}", most, into)
        except FileNotFoundError as error:
            raise FileNotFoundError(2, "No such file", path) from error
        except Exception as error:  # errors of file systems come from their own libraries and share no base
            raise RemoteError(str(path), detail(error), attempts=attempt) from error
        if self._prefix:  # without a prefix it is the record itself
            self._connection.last_read = object()
        return found


class _LongerError(Exception):
    """A file is longer than usual files."""


def _signature(data: bytes | memoryview) -> Signature:
    return 0, len(data), int.from_bytes(blake2b(data, digest_size=16).digest())

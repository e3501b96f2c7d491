"""A store's folder at a URL, read through fsspec: several files at once, and again after a failed connection.

No body is read further than the largest allowed size of the file. `chunks` and `snapshot` check the content. This
module writes nothing.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Final, TypeVar

from embstore._engine.io.folder import Signature, check_name
from embstore.errors import CorruptStoreError, ReadOnlyError, RemoteError

logger = logging.getLogger("embstore")

T = TypeVar("T")

_ATTEMPTS: Final = 4
_FIRST_PAUSE: Final = 0.1  # seconds, doubled each time
_AT_ONCE: Final = 16
_NBYTES_AT_ONCE: Final = 256 * 2**20
_CONNECT_SECONDS: Final = 30
_SILENT_SECONDS: Final = 60
_LEAST_SPEED: Final = 2**14  # bytes a second
_SHOWN: Final = 200
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(://|::.*://)")  # one letter is a Windows drive's
_HEAD: Final = re.compile(r"((?:^|::)[A-Za-z][A-Za-z0-9+.-]+):/+")
_WITH_USER: Final = re.compile(r"((?:https?|ftps?|sftp|ssh|webdavs?|davs?|smb)://[^/@:]*):[^/@]*@")
_MADE: Final[dict[int, Any]] = {}
"""All file systems of this process and, after a fork, of its parents. fsspec keeps them too, but not across a fork.
Freed in the forked process, they would close their connections, and remove them from the epoll on which the parent
waits."""


def is_url(place: str | os.PathLike[str]) -> bool:
    """Return whether fsspec must open a place: ``s3://…``, ``http://…``, ``zip://…::…``, but not ``file://…``.

    Examples
    --------
    >>> is_url("s3://bucket/dog.zarr"), is_url("/data/dog.zarr"), is_url("C:/dog.zarr")
    (True, False, False)
    """
    text = os.fspath(place)
    return _URL.match(text) is not None and not text.startswith("file://")


class Url(PurePosixPath):
    """A URL for display, which joins with names as a path does. Passwords and the query after "?" are left out.

    Only a `pathlib.Path` is on this machine. So a function that needs one does not accept a `Url`.
    """

    def __str__(self) -> str:
        """Return the URL. A path collapses its two or three slashes to one."""
        local = ("file", "local")
        return _HEAD.sub(lambda m: f"{m[1]}:{'///' if m[1].endswith(local) else '//'}", super().__str__())

    @classmethod
    def shown(cls, url: str | os.PathLike[str]) -> Url:
        """Return a URL as it is displayed."""
        links = os.fspath(url).split("::")
        links = [link.partition("?")[0] if link.startswith("http") else link for link in links]
        return cls(_WITH_USER.sub(r"\1@", "::".join(links)))


def local_path(place: str | os.PathLike[str]) -> Path:
    """Return the path of a place on this machine, which may be written as ``file://…`` or begin with ``~``.

    Raises
    ------
    ReadOnlyError
        The place is a URL. As a path it would be a folder named "s3:".
    """
    if is_url(place):
        raise ReadOnlyError(Url.shown(place), "it is a URL; nothing is written there, and embstore.open reads a store")
    return Path(os.path.expanduser(os.fspath(place).removeprefix("file://")))


class Connection:
    """The file system that fsspec makes for a URL. It is made anew in a forked process.

    Attributes
    ----------
    last_read : object
        Token that changes with each fetch of chunks, before their content is returned.
    """

    __slots__ = ("_filesystem", "_process", "_root", "last_read", "options", "url")

    def __init__(self, url: str, options: Mapping[str, Any] | None) -> None:
        self.url = url
        self.options = dict(options or {})
        self.last_read: object = None
        self._open()

    def _open(self) -> None:
        import fsspec

        shown = str(Url.shown(self.url))
        options = {name: dict(value) if isinstance(value, dict) else value for name, value in self.options.items()}
        try:
            self._filesystem, self._root = fsspec.url_to_fs(self.url, **options)  # fsspec changes the dicts of a chain
        except Exception as error:  # not installed, unknown protocol, or an error of a chain's first link
            raise RemoteError(shown, _detail(error), attempts=0) from error
        if _caches(self._filesystem):
            raise RemoteError(
                shown, "a cache by file name would serve files of earlier commits; open the URL without it", attempts=0
            )
        _MADE[id(self._filesystem)] = self._filesystem
        self._process = os.getpid()

    def fetch(self, names: Sequence[str], *, most: int) -> list[Any]:
        """Fetch files of the store at once, by their names in it.

        Returns
        -------
        list
            For each file its bytes, or the error. At most ``most + 1`` bytes of a file are fetched.
        """
        if self._process != os.getpid():
            _forget_loop()
            self._open()
        try:
            if _is_http(self._filesystem):
                return _get_all(self._filesystem, [self._http_url(name) for name in names], most)
            paths = [f"{self._root.rstrip('/')}/{name}" for name in names]
            self._filesystem.invalidate_cache()  # the sizes in it may be those of an earlier commit
            # Not `cat`: it treats "?" and "[" in a name as a pattern, and has no limit of bytes.
            return list(self._filesystem.cat_ranges(paths, 0, most + 1, on_error="return"))
        except Exception as error:  # errors of file systems come from their own libraries and share no base
            return [error] * len(names)

    def _http_url(self, name: str) -> str:
        place, mark, query = self._root.partition("?")  # a token for the whole folder follows each name
        return f"{place.rstrip('/')}/{name}{mark}{query}"


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
            For fsspec's file system: credentials, endpoints, timeouts.
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
        """The URL and the options as they were passed."""
        return self._connection.url, self._connection.options

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
        return next(self.contents([name], lambda _, data: data, most=most))

    def read_marked(self, name: str, parse: Callable[[PurePath, bytes], T], *, most: int) -> tuple[Signature, T]:
        """Read a whole file in one fetch. Return its `signature`, and its content as `parse` returns it."""
        return next(self.contents([name], lambda path, data: (_signature(data), parse(path, data)), most=most))

    def contents(
        self, names: Iterable[str], parse: Callable[[PurePath, bytes], T], *, most: int, held: int | None = None
    ) -> Iterator[T]:
        """Fetch whole files, several at once, and yield the content of each in turn as `parse` returns it.

        A file that fails, or that `parse` finds broken, is fetched again, up to four times in all. The files in flight
        together have at most 256 MiB, unless one file alone is larger.

        Raises
        ------
        FileNotFoundError, RemoteError, CorruptStoreError
        """
        held = most if held is None else held
        usual = min(most, held)
        at_once = max(1, min(_AT_ONCE, _NBYTES_AT_ONCE // held))
        rest = iter(names)
        while group := list(islice(rest, at_once)):
            found = self._fetched(group, parse, usual, last=usual == most)
            for name in group:
                if name not in found:  # an unusually long file, which is fetched alone
                    found = {**found, **self._fetched([name], parse, most)}
                yield found.pop(name)

    def _fetched(
        self, names: Sequence[str], parse: Callable[[PurePath, bytes], T], most: int, *, last: bool = True
    ) -> dict[str, T]:
        """Fetch files at once, and broken ones again. Unless `last`, leave out files longer than `most`."""
        for name in names:
            check_name(self.path, name)
        found: dict[str, T] = {}
        wanted = list(names)
        for attempt in range(1, _ATTEMPTS + 1):
            failed: dict[str, Exception] = {}
            contents = self._connection.fetch([self._prefix + name for name in wanted], most=most)
            if self._prefix:  # without a prefix it is the record itself
                self._connection.last_read = object()
            for name in wanted:
                data = contents.pop(0)
                try:
                    if not last and not isinstance(data, BaseException) and len(data) > most:
                        continue
                    found[name] = parse(self.path / name, self._content(name, data, most, attempt))
                except (CorruptStoreError, RemoteError) as problem:
                    failed[name] = problem
            if not failed:
                return found
            name, error = next(iter(failed.items()))
            if attempt == _ATTEMPTS or isinstance(error.__cause__, RefusedError | PermissionError):
                raise error
            logger.info("%s: fetched again, since %s", self.path / name, error)
            time.sleep(_FIRST_PAUSE * 2 ** (attempt - 1))
            wanted = list(failed)
        raise AssertionError("the last attempt returns or raises")

    def _content(self, name: str, data: Any, most: int, attempt: int) -> bytes:
        """Return a file's bytes, or raise the error that was fetched instead."""
        path = self.path / name
        if isinstance(data, FileNotFoundError):
            raise FileNotFoundError(2, "No such file", path) from data
        if isinstance(data, BaseException):
            raise RemoteError(str(path), _detail(data), attempts=attempt) from data
        if len(data) > most:
            raise CorruptStoreError(path, f"expected at most {most:,} bytes, found more")
        return bytes(data)


def _detail(error: BaseException) -> str:
    return str(error)[:_SHOWN] or type(error).__name__  # bounded, because aiohttp quotes the server's answer


def _signature(data: bytes) -> Signature:
    return 0, len(data), int.from_bytes(blake2b(data, digest_size=16).digest())


def _forget_loop() -> None:
    """Restart fsspec's event loop, if the loop's thread was the parent's. Newer versions of fsspec do so themselves."""
    from fsspec import asyn

    if asyn.iothread[0] is not None and not asyn.iothread[0].is_alive():
        asyn.reset_lock()


def _caches(filesystem: Any) -> bool:
    """Return whether files come through one of fsspec's caches, which keep files by name."""
    from fsspec.implementations.cached import CachingFileSystem

    while filesystem is not None:
        if isinstance(filesystem, CachingFileSystem):
            return True
        filesystem = getattr(filesystem, "fs", None)
    return False


class RefusedError(Exception):
    """A web server refused a request, and another attempt is useless. It never leaves this module."""


def _is_http(filesystem: Any) -> bool:
    if "http" not in filesystem.protocol:  # otherwise its module and aiohttp are imported already
        return False
    from fsspec.implementations.http import HTTPFileSystem

    return isinstance(filesystem, HTTPFileSystem)


def _get_all(filesystem: Any, urls: Sequence[str], most: int) -> list[Any]:
    """Fetch URLs at once. fsspec's own functions read all that a server sends, without a limit."""
    import asyncio

    from fsspec.asyn import sync

    async def get_all() -> list[Any]:
        session = await filesystem.set_session()
        options = _request_options(filesystem, most)
        gets = (_get(session, filesystem.encode_url(url), options, most) for url in urls)
        return await asyncio.gather(*gets, return_exceptions=True)

    return list(sync(filesystem.loop, get_all))


def _request_options(filesystem: Any, most: int) -> dict[str, Any]:
    import aiohttp

    options = dict(filesystem.kwargs)
    # Caches on the way must revalidate each file: an erase changes files and keeps their names.
    unchanged = {"Accept-Encoding": "identity", "Cache-Control": "no-cache"}
    options["headers"] = {**unchanged, **(options.get("headers") or {})}
    if "timeout" not in filesystem.client_kwargs:
        total = _SILENT_SECONDS + most / _LEAST_SPEED
        timeout = aiohttp.ClientTimeout(total=total, sock_connect=_CONNECT_SECONDS, sock_read=_SILENT_SECONDS)
        options.setdefault("timeout", timeout)
    return options


async def _get(session: Any, url: Any, options: Mapping[str, Any], most: int) -> bytes:
    """Fetch one URL, at most ``most + 1`` bytes."""
    async with session.get(url, **options) as response:
        if response.status in (404, 410):
            raise FileNotFoundError(str(url))
        if response.status >= 400:
            again = response.status >= 500 or response.status in (408, 425, 429)
            reason = f"the server answered {response.status} {response.reason or ''}".rstrip()
            raise OSError(reason) if again else RefusedError(reason)
        body = bytearray()
        async for part in response.content.iter_any():
            body += part
            if len(body) > most:
                break  # this closes the connection
        return bytes(memoryview(body)[: most + 1])

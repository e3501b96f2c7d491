"""One file at a URL through fsspec: every protocol that `object_store` does not read, and forked processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from embstore._engine.io.object_store import remedy
from embstore._engine.io.urls import RefusedError, Url, detail
from embstore.errors import RemoteError

_AT_ONCE: Final = 16
_CONNECT_SECONDS: Final = 30
_SILENT_SECONDS: Final = 60
_LEAST_SPEED: Final = 2**14  # bytes a second
_MADE: Final[dict[int, Any]] = {}
"""All file systems of this process and, after a fork, of its parents. fsspec keeps them too, but not across a fork.
Freed in the forked process, they would close their connections, and remove them from the epoll on which the parent
waits."""


class FsspecFiles:
    """The files below a URL, through the file system that fsspec makes for it.

    Attributes
    ----------
    at_once : int
        Most files to fetch at once. File systems without asyncio are not known to be safe in several threads.
    """

    __slots__ = ("_filesystem", "_root", "at_once")

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        shown = str(Url.shown(url))
        copied = {name: dict(value) if isinstance(value, dict) else value for name, value in options.items()}
        try:
            import fsspec

            _forget_loop()
            self._filesystem, self._root = fsspec.url_to_fs(url, **copied)  # fsspec changes the dicts of a chain
        except ImportError as error:
            raise RemoteError(shown, f"{detail(error)}{remedy(url)}", attempts=0) from error
        except Exception as error:  # unknown protocol, or an error of a chain's first link
            raise RemoteError(shown, detail(error), attempts=0) from error
        if _caches(self._filesystem):
            raise RemoteError(
                shown, "a cache by file name would serve files of earlier commits; open the URL without it", attempts=0
            )
        self.at_once = _AT_ONCE if getattr(self._filesystem, "async_impl", False) else 1
        _MADE[id(self._filesystem)] = self._filesystem

    def get(self, name: str, most: int, into: memoryview) -> tuple[int, memoryview]:
        """Fetch at most ``most + 1`` bytes of the file at a relative path. See `ObjectStore.get`.

        Raises
        ------
        FileNotFoundError, RefusedError
        Exception
            Errors of file systems come from their own libraries and share no base.
        """
        data = self._fetched(name, most)
        if 0 < len(into) <= len(data):
            into[:] = data[: len(into)]
        return len(data), memoryview(data)[len(into) :]

    def _fetched(self, name: str, most: int) -> bytes:
        if _is_http(self._filesystem):
            return _get_http(self._filesystem, self._http_url(name), most)
        self._filesystem.invalidate_cache()  # the sizes in it may be those of an earlier commit
        # Not `cat`: it treats "?" and "[" in a name as a pattern, and has no limit of bytes.
        (found,) = self._filesystem.cat_ranges([f"{self._root.rstrip('/')}/{name}"], 0, most + 1, on_error="return")
        if isinstance(found, PermissionError):
            raise RefusedError(detail(found)) from found
        if isinstance(found, BaseException):
            raise found
        return bytes(found)

    def _http_url(self, name: str) -> str:
        place, mark, query = self._root.partition("?")  # a token for the whole folder follows each name
        return f"{place.rstrip('/')}/{name}{mark}{query}"


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


def _is_http(filesystem: Any) -> bool:
    if "http" not in filesystem.protocol:  # otherwise its module and aiohttp are imported already
        return False
    from fsspec.implementations.http import HTTPFileSystem

    return isinstance(filesystem, HTTPFileSystem)


def _get_http(filesystem: Any, url: str, most: int) -> bytes:
    """Fetch a URL. fsspec's own functions read all that a server sends, without a limit."""
    from fsspec.asyn import sync

    return bytes(sync(filesystem.loop, _get, filesystem, url, most))


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


async def _get(filesystem: Any, url: str, most: int) -> bytes:
    """Fetch one URL, at most ``most + 1`` bytes."""
    session = await filesystem.set_session()
    async with session.get(filesystem.encode_url(url), **_request_options(filesystem, most)) as response:
        if response.status in (404, 410):
            raise FileNotFoundError(url)
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

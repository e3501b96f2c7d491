"""URLs: which places are URLs, how they are shown, and the parts of them and of their options that are secret."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from embstore.errors import ReadOnlyError

_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(://|::.*://)")  # one letter is a Windows drive's
_HEAD: Final = re.compile(r"((?:^|::)[A-Za-z][A-Za-z0-9+.-]+):/+")
_WITH_USER: Final = re.compile(r"((?:https?|ftps?|sftp|ssh|webdavs?|davs?|smb)://[^/@:]*):[^/@]*@")
_SECRET: Final = re.compile(r"key|secret|token|pass|credential|auth|sas|connection_string|cookie", re.IGNORECASE)
_SHOWN: Final = 200


class RefusedError(Exception):
    """A server refused a request, and another attempt is useless. It never leaves `_engine.io`."""


class ConditionError(Exception):
    """An object is another one than a conditional write expected. It never leaves the engine."""


def is_url(place: str | os.PathLike[str]) -> bool:
    """Return whether fsspec must open a place: ``s3://…``, ``http://…``, ``zip://…::…``, but not ``file://…``.

    Examples
    --------
    >>> is_url("s3://bucket/dog.zarr"), is_url("/data/dog.zarr"), is_url("C:/dog.zarr")
    (True, False, False)
    """
    if not isinstance(text := os.fspath(place), str):
        raise TypeError(f"expected a path as text, found {text!r:.200}; use os.fsdecode(path)")
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


def without_secrets(options: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return options of a file system without credentials, for pickles: another process has its own.

    Examples
    --------
    >>> without_secrets({"key": "AKIA", "secret": "x", "client_kwargs": {"endpoint_url": "http://h"}, "anon": False})
    {'client_kwargs': {'endpoint_url': 'http://h'}, 'anon': False}
    """
    if options is None:
        return None
    kept = {name: value for name, value in options.items() if not _SECRET.search(name)}
    return {name: without_secrets(value) if isinstance(value, Mapping) else value for name, value in kept.items()}


def detail(error: BaseException) -> str:
    """Return an error's message, cut short: aiohttp quotes the answer of the server."""
    return str(error)[:_SHOWN] or type(error).__name__

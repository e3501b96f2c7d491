"""One object of a bucket or a web server through obstore: S3, Google Cloud Storage, Azure, HTTP.

This is the only module that imports obstore. `fsspec_files` reads all other protocols, and in forked processes.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

import numpy as np

from embstore._engine.io.threads import forks
from embstore._engine.io.urls import ConditionError, RefusedError, Url
from embstore.errors import RemoteError

T = TypeVar("T")

_AT_ONCE: Final = 16
_CONNECT_SECONDS: Final = 30
_SILENT_SECONDS: Final = 60
_LEAST_SPEED: Final = 2**14  # bytes a second
_KINDS: Final = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az", "https": "http"}
"""Protocols that are another name, or a form, of one of `_NAMES`."""
_NAMES: Final = {
    "s3": {
        "key": "access_key_id",
        "secret": "secret_access_key",
        "token": "session_token",
        "anon": "skip_signature",
        "endpoint_url": "endpoint",
        "region_name": "region",
        "aws_access_key_id": "access_key_id",
        "aws_secret_access_key": "secret_access_key",
        "aws_session_token": "session_token",
    },
    "gs": {"anon": "skip_signature"},
    "az": {"anon": "skip_signature", "sas_token": "sas_key"},
    "http": {},
}
"""Names of options of fsspec's file systems, and those of obstore."""
_STATUS: Final = re.compile(r"status code: (\d{3} [A-Za-z -]*)")
_REQUEST: Final = re.compile(r"Error performing [A-Z]+ .* in [\d.]+\S+ - |https?://\S+")
_PIECE_NBYTES: Final = 2**16
_AGAIN: Final = (408, 425, 429)
_used: int | None = None
"""The number of forks before the process in which obstore was used. Its threads don't survive a fork, and a request in
the forked process would wait for ever."""


def _is_known(url: str) -> bool:
    """Return whether obstore knows the protocol of a URL."""
    return "::" not in url and _kind(url) in _NAMES


def is_bucket(url: str) -> bool:
    """Return whether a URL leads into a bucket, which can be written: of S3, Google Cloud Storage or Azure."""
    return _is_known(url) and _kind(url) != "http"


def remedy(url: str) -> str:
    """Return how a URL could be read without fsspec, as the end of a message."""
    if not _is_known(url):
        return ""
    if _used in (None, forks()):
        return "; pip install 'embstore[bucket]'"
    return ", which forked processes need: install it, or start them with multiprocessing_context='spawn'"


def _kind(url: str) -> str:
    protocol = url.partition("://")[0].lower()
    return _KINDS.get(protocol, protocol)


class Mark(NamedTuple):
    """One version of an object. S3, R2 and Azure compare the ETag, GCS the version."""

    etag: str | None
    version: str | None


class Listed(NamedTuple):
    """An object: its name relative to the URL, its size in bytes, and the server's time of its last write."""

    name: str
    nbytes: int
    modified: datetime


class ObjectStore:
    """The objects below a URL.

    Attributes
    ----------
    at_once : int
        Most objects to fetch at once.
    """

    __slots__ = ("_prefix", "_store", "at_once")

    def __init__(self, store: Any, prefix: str) -> None:
        self.at_once = _AT_ONCE
        self._store = store
        self._prefix = prefix

    @classmethod
    def connect(cls, url: str, options: Mapping[str, Any]) -> ObjectStore | None:
        """Return the objects below a URL, or None if fsspec has to read them.

        That is so for other protocols, without obstore, for options that only fsspec knows, and in a process that was
        forked after obstore was used.

        Raises
        ------
        RemoteError
            An option has a value that obstore or boto3 refuses.
        """
        global _used
        if not _is_known(url) or importlib.util.find_spec("obstore") is None or _used not in (None, forks()):
            return None
        kind = _kind(url)
        translated = _translated(kind, options)
        if translated is None:
            return None
        from obstore.exceptions import UnknownConfigurationKeyError

        _used = forks()
        try:
            return cls(*_made(kind, url, translated))
        except (UnknownConfigurationKeyError, TypeError):
            return None
        except Exception as error:  # of obstore or boto3, which share no base: a profile that is not there
            raise RemoteError(str(Url.shown(url)), _reason(error), attempts=0) from error

    def get(self, name: str, most: int, into: memoryview) -> tuple[int, memoryview]:
        """Fetch the object at a relative path, unless it has more than `most` bytes or fewer than fit `into`.

        Parameters
        ----------
        name : str
        most : int
        into : memoryview of bytes
            Gets the first bytes.

        Returns
        -------
        int, memoryview
            Its size, and the bytes that follow those in `into`.

        Raises
        ------
        FileNotFoundError, RefusedError, OSError
        """
        import obstore

        deadline = time.monotonic() + _SILENT_SECONDS + most / _LEAST_SPEED

        def fetch() -> tuple[int, memoryview]:
            found = obstore.get(self._store, f"{self._prefix}{name}")
            size = int(found.meta["size"])
            if not len(into) <= size <= most:
                return size, memoryview(b"")
            rest = np.empty(size - len(into), np.uint8).data
            _fill([into, rest], found.stream(min_chunk_size=_PIECE_NBYTES), deadline)
            return size, rest.toreadonly()

        return _explained(fetch, name)

    def read(self, name: str, most: int, unless: Mark | None = None) -> tuple[bytes, Mark, datetime] | None:
        """Fetch a small object with its mark and the time of its last write, or None if it still has the mark `unless`.

        Raises
        ------
        FileNotFoundError, RefusedError, OSError
        """
        import obstore
        from obstore.exceptions import NotModifiedError

        def fetch() -> tuple[bytes, Mark, datetime] | None:
            options: Any = {"if_none_match": unless.etag} if unless and unless.etag else None
            try:
                found = obstore.get(self._store, f"{self._prefix}{name}", options=options)
            except NotModifiedError:
                return None
            meta = found.meta
            if int(meta["size"]) > most:
                raise RefusedError(f"expected at most {most:,} bytes, found {meta['size']:,}")
            return bytes(found.bytes()), Mark(meta["e_tag"], meta["version"]), meta["last_modified"]

        return _explained(fetch, name)

    def put(self, name: str, data: bytes | memoryview, *, old: Mark | None = None) -> Mark:
        """Write an object: a new one, or in place of the version `old`.

        Raises
        ------
        ConditionError
            There is an object of this name, or the object has another version.
        RefusedError
        OSError
            It is not known whether the object was written.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        mode: Any = "create"
        if old is not None:
            mode = {key: value for key, value in (("e_tag", old.etag), ("version", old.version)) if value is not None}

        def write() -> Mark:
            try:
                done = obstore.put(self._store, f"{self._prefix}{name}", data, mode=mode, use_multipart=False)
            except (AlreadyExistsError, PreconditionError) as error:
                raise ConditionError(name) from error
            return Mark(done["e_tag"], done["version"])

        return _explained(write, name)

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects. Those that do not exist are passed over.

        Raises
        ------
        RefusedError, OSError
        """
        import obstore

        for name in names:
            with contextlib.suppress(FileNotFoundError):
                _explained(partial(obstore.delete, self._store, f"{self._prefix}{name}"), name)

    def folders(self) -> list[str]:
        """Return the names of the folders directly below the URL, sorted.

        Raises
        ------
        RefusedError, OSError
        """
        import obstore

        found = _explained(lambda: obstore.list_with_delimiter(self._store, prefix=self._prefix or None), "")
        return sorted(name.removeprefix(self._prefix).rstrip("/") for name in found["common_prefixes"])

    def listed(self, prefix: str = "") -> Iterator[Listed]:
        """Yield the objects whose names begin with whole parts of `prefix`.

        Raises
        ------
        RefusedError, OSError
        """
        import obstore

        pages = iter(obstore.list(self._store, prefix=f"{self._prefix}{prefix}" or None))
        while (page := _explained(lambda: next(pages, None), prefix)) is not None:
            for meta in page:
                yield Listed(meta["path"].removeprefix(self._prefix), int(meta["size"]), meta["last_modified"])


def _explained(call: Callable[[], T], name: str) -> T:
    """Return the result of a request, and turn errors of obstore into those of this module."""
    from obstore.exceptions import BaseError, NotSupportedError, PermissionDeniedError, UnauthenticatedError

    try:
        return call()
    except FileNotFoundError:
        raise
    except (PermissionDeniedError, UnauthenticatedError, NotSupportedError) as error:
        raise RefusedError(_reason(error)) from error
    except BaseError as error:
        status = _STATUS.search(str(error))
        code = int(status[1][:3]) if status else 0
        if code == 410:
            raise FileNotFoundError(name) from error
        if 400 <= code < 500 and code not in _AGAIN:
            raise RefusedError(_reason(error)) from error
        raise OSError(_reason(error)) from error


def _fill(buffers: list[memoryview], pieces: Iterator[Any], deadline: float) -> None:
    """Fill buffers one after the other with the pieces of a body, each byte copied once."""
    left = [buffer for buffer in buffers if buffer]
    for piece in pieces:
        data = memoryview(piece).cast("B")
        while data:
            if not left:
                raise OSError("received more bytes than announced")
            count = min(len(data), len(left[0]))
            left[0][:count] = data[:count]
            data, left[0] = data[count:], left[0][count:]
            if not left[0]:
                del left[0]
        if time.monotonic() > deadline:
            raise OSError("the server sent too few bytes in the time allowed")
    if left:
        raise OSError(f"{sum(map(len, left)):,} bytes of the body are missing")


def _reason(error: BaseException) -> str:
    """Return the message of an error of obstore without URLs, which may hold passwords and tokens."""
    text = str(error)
    if status := _STATUS.search(text):
        return f"the server answered {status[1].strip()}"
    return _REQUEST.sub("", text.partition("\n")[0])[:200] or type(error).__name__


def _translated(kind: str, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return options under the names of obstore, or None if only fsspec knows them."""
    flat = {name: value for name, value in options.items() if name != "client_kwargs"}
    nested = options.get("client_kwargs") or {}
    if kind == "http" and nested:  # options of aiohttp
        return None
    flat |= nested
    return {_NAMES[kind].get(name, name): value for name, value in flat.items()}


def _made(kind: str, url: str, options: dict[str, Any]) -> tuple[Any, str]:
    """Return obstore's store of a URL, and the prefix of its objects. Keys of buckets are literal, not quoted."""
    from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store

    client: Any = {
        "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
        "read_timeout": timedelta(seconds=_SILENT_SECONDS),
        "timeout": timedelta(days=7),  # `get` has a deadline by size
        **options.pop("client_options", {}),
    }
    options = {"retry_config": {"max_retries": 0}, **options}  # `RemoteFolder` tries again
    if kind == "http":
        place, client["default_headers"] = _web(url, options.pop("headers", None) or {})
        client["allow_http"] = True
        return HTTPStore(place, client_options=client, **options), ""
    bucket, _, prefix = url.partition("://")[2].partition("/")
    prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    if str(options.get("endpoint", "")).startswith("http://"):
        client["allow_http"] = True
    if kind == "s3":
        options = _with_credentials(options)
        return S3Store(bucket, client_options=client, **options), prefix
    if kind == "gs":
        return GCSStore(bucket, client_options=client, **options), prefix
    container, _, account = bucket.partition("@")
    if account:
        options.setdefault("account_name", account.partition(".")[0])
    return AzureStore(container, client_options=client, **options), prefix


def _with_credentials(options: dict[str, Any]) -> dict[str, Any]:
    """Add the credentials that boto3 finds (profiles, roles, single sign-on), where it is installed.

    obstore itself looks in the environment and at the services of the machine.
    """
    profile = options.pop("profile", None)
    if options.get("skip_signature") or "access_key_id" in options or importlib.util.find_spec("boto3") is None:
        if profile is not None and "access_key_id" not in options:
            raise ValueError("a profile needs boto3: pip install boto3")
        return options
    import boto3
    from obstore.auth.boto3 import Boto3CredentialProvider

    session = boto3.Session(profile_name=profile)
    if session.get_credentials() is None:
        return options
    return {"credential_provider": Boto3CredentialProvider(session), **options}


def _web(url: str, headers: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Return a URL without its user, and the headers of each request."""
    parts = urlsplit(url)
    # Caches on the way must revalidate each file: an erase changes files and keeps their names.
    given = {"Accept-Encoding": "identity", "Cache-Control": "no-cache"}
    user, at, host = parts.netloc.rpartition("@")
    if at:
        given["Authorization"] = f"Basic {base64.b64encode(unquote(user).encode()).decode()}"
    return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), parts.query, "")), given | dict(headers)

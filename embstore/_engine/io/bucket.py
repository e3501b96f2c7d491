"""Write the objects of a store in a bucket: new ones, conditional replacements, deletions and listings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final, TypeVar

from embstore._engine.io.object_store import Listed, Mark, ObjectStore
from embstore._engine.io.threads import forks, in_turn
from embstore._engine.io.urls import ConditionError, RefusedError, Url
from embstore.errors import MissingLibraryError, RemoteError

T = TypeVar("T")

_ATTEMPTS: Final = 5
_FIRST_PAUSE: Final = 0.1  # seconds, doubled each time


class Bucket:
    """The objects of one store, to be written.

    Parameters
    ----------
    url : str
    options : mapping, optional
        As `embstore.open` takes them.

    Raises
    ------
    MissingLibraryError, RemoteError
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self.path = Url.shown(url)
        objects = ObjectStore.connect(url, options or {})
        if objects is None:
            try:
                import obstore  # noqa: F401
            except ImportError as error:
                raise MissingLibraryError("obstore", "bucket", "to write to a bucket") from error
            raise RemoteError(
                str(self.path),
                "a store is written through obstore: expected s3, gs or az with options that obstore knows, in a "
                "process that was not forked after it read from a bucket (use the start method 'spawn')",
                attempts=0,
            )
        self._objects = objects
        self._forks = forks()

    def read(self, name: str, *, most: int, unless: Mark | None = None) -> tuple[bytes, Mark, datetime] | None:
        """Fetch an object with its mark and the server's time of its last write. None if it still has a mark.

        Raises
        ------
        FileNotFoundError, RemoteError
        """
        return self._again(name, lambda: self._here().read(name, most, unless))

    def replace(self, name: str, data: bytes, old: Mark | None) -> Mark:
        """Write an object once, if it is absent (`old` is None) or still has a mark. It is never tried again.

        Raises
        ------
        ConditionError
        RemoteError
            The server refused.
        OSError
            It is not known whether the object was written.
        """
        try:
            return self._here().put(name, data, old=old)
        except FileNotFoundError as error:  # S3 answers 404 to a replacement of a deleted object
            raise ConditionError(name) from error
        except RefusedError as error:
            raise self._error(name, error, 1) from error

    def obeys(self, name: str, old: Mark | None) -> bool:
        """Return whether the server refuses to write an object that is there, as `replace` asks it to.

        Raises
        ------
        RemoteError
        """

        def refused() -> bool:
            try:
                self._here().put(name, b"", old=old)
            except ConditionError:
                return True
            return False

        return self._again(name, refused)

    def add(self, name: str, data: bytes | memoryview) -> bool:
        """Write a new object. Return False if another object has the name.

        Raises
        ------
        RemoteError
        """

        def put() -> bool:
            try:
                self._here().put(name, data)
            except ConditionError:
                # The answer to an attempt before may have been lost, or two requests met (S3's 409).
                try:
                    found = self._here().read(name, len(data))
                except FileNotFoundError as error:
                    raise OSError("the server answered that the object exists, but it does not") from error
                except RefusedError:  # another object, which is larger
                    return False
                return found is not None and found[0] == bytes(data)
            except FileNotFoundError as error:
                raise RefusedError("there is no such bucket") from error
            return True

        return self._again(name, put)

    def add_all(self, objects: Sequence[tuple[str, Callable[[], bytes]]]) -> None:
        """Write new objects, several at once. The bytes of each are read when it is its turn."""

        def add(one: tuple[str, Callable[[], bytes]]) -> None:
            name, read = one
            if not self.add(name, read()):
                raise self._error(name, RefusedError("another object has this random name"), 1)

        for _ in in_turn(add, objects, held=2**24, threads=self._objects.at_once):
            pass

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects, if they exist.

        Raises
        ------
        RemoteError
        """
        for name in names:
            self._again(name, partial(self._delete, name))

    def folders(self) -> list[str]:
        """Return the names of the folders directly below the URL, sorted.

        Raises
        ------
        RemoteError
        """
        return self._again("", lambda: self._here().folders())

    def listed(self, prefix: str) -> list[Listed]:
        """List the objects below a folder of the store.

        Raises
        ------
        RemoteError
        """
        return self._again(prefix, lambda: list(self._here().listed(prefix)))

    def _delete(self, name: str) -> None:
        self._here().delete([name])

    def _here(self) -> ObjectStore:
        """Return the objects, unless this process was forked: obstore's threads stayed behind, and it would hang."""
        if self._forks != forks():
            raise RefusedError(
                "the store was opened for writing before this process was forked: open it here, in a process that was "
                "started with 'spawn'"
            )
        return self._objects

    def _again(self, name: str, call: Callable[[], T]) -> T:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return call()
            except FileNotFoundError:
                raise
            except (RefusedError, OSError) as error:
                if isinstance(error, RefusedError) or attempt == _ATTEMPTS:
                    raise self._error(name, error, attempt) from error
            time.sleep(_FIRST_PAUSE * 2 ** (attempt - 1))
        raise AssertionError("the last attempt returns or raises")

    def _error(self, name: str, error: Exception, attempts: int) -> RemoteError:
        return RemoteError(str(self.path / name), str(error), attempts=attempts)

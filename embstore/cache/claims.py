"""Claims: processes that fill one store tell each other which samples they are at, so that none is encoded twice.

A claim is a file of key hashes that belongs to a process as long as that holds the lock beside it; a killed process
loses its lock, and so its claims. They are a courtesy: without them rows are encoded twice, but never wrong.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from embstore._engine.format.keys import hash_keys
from embstore._engine.io.locks import FileLock, lock

_FOLDER: Final = ".claims"
_NBYTES: Final = 16  # of a key's hash
_CHOOSING: Final = "choosing"
_WAIT: Final = 60.0


class Claims:
    """What this process and others are at, of the samples of one store.

    Parameters
    ----------
    path : Path
        Of the store.
    """

    def __init__(self, path: Path) -> None:
        self._folder = _place(path)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._own = FileLock(self._folder / uuid.uuid4().hex)
        with _alone(self._folder):  # else another process may find the file before it is locked
            self._own.acquire()

    @contextlib.contextmanager
    def choosing(self) -> Iterator[set[bytes]]:
        """Keep others from claiming meanwhile; gives the hashes of the keys that they have claimed."""
        with _alone(self._folder):
            claimed: set[bytes] = set()
            for claim in _alive(self._folder, self._own.place):
                with contextlib.suppress(FileNotFoundError):  # given up just now
                    data = claim.read_bytes()
                    claimed.update(data[start : start + _NBYTES] for start in range(0, len(data), _NBYTES))
            yield claimed

    def announce(self, keys: list[str]) -> None:
        """Say which samples this process is at, in place of what it said before. Called inside `choosing`."""
        self._own.place.write_bytes(hash_keys(keys).tobytes())

    def release(self) -> None:
        """Give all claims up."""
        self._own.remove()

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def at_work(path: Path) -> bool:
    """Tell whether any process is encoding into the store at `path`."""
    folder = _place(path)
    if not folder.is_dir():
        return False
    with _alone(folder):
        return any(True for _ in _alive(folder))


def _place(path: Path) -> Path:
    return path.parent / _FOLDER / path.name


def _alone(folder: Path) -> contextlib.AbstractContextManager[None]:
    return lock(folder / _CHOOSING, timeout=_WAIT)


def _alive(folder: Path, own: Path | None = None) -> Iterator[Path]:
    """Yield the claims of other processes that live, and remove those of others. Called while `_alone`."""
    for claim in folder.iterdir():
        if claim == own or claim.stem == _CHOOSING:
            continue
        held = FileLock(claim)
        if held.acquire():  # the process that claimed this is gone
            held.remove()
        else:
            yield claim


def hashes_of(keys: list[str]) -> list[bytes]:
    """Return the hash of each key, as it stands in a claim."""
    return [row.tobytes() for row in hash_keys(keys)]

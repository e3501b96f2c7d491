"""Claims: processes that fill one store publish the samples they work on, so that each sample is encoded once.

A claim is a file of key hashes. It is valid while its process holds the lock beside the file. A killed process loses
the lock and so the claim. Claims save work only: without them rows are encoded twice, but never wrong.
"""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Final

from embstore._engine.format.keys import hash_keys
from embstore._engine.io.folder import Folder
from embstore._engine.io.locks import FileLock, lock

_FOLDER: Final = ".claims"
_NBYTES: Final = 16  # of a key's hash
_HELD: Final = ".held"
"""Suffix of the lock of a claim. It is a file of its own, because SMB may refuse to read or write a locked file."""
_NAME: Final = re.compile(rf"[0-9a-f]{{32}}({re.escape(_HELD)})?")
_WAIT: Final = 60.0


def claims_on(path: PurePath) -> Claims | NoClaims:
    """Return claims on the samples of the store at a path or URL."""
    return Claims(path) if isinstance(path, Path) else NoClaims()


class NoClaims:
    """No claims, for a store in a bucket. Its key check stores each row once."""

    @contextlib.contextmanager
    def choosing(self) -> Iterator[set[bytes]]:
        """Yield no hashes."""
        yield set()

    def announce(self, keys: list[str]) -> None:
        """Do nothing."""

    def __enter__(self) -> NoClaims:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing."""


class Claims:
    """Claims of this process and of others on the samples of one store.

    Parameters
    ----------
    path : Path
        Path of the store.
    """

    def __init__(self, path: Path) -> None:
        folder = Folder.open(path.parent)
        for name in (_FOLDER, path.name):
            with contextlib.suppress(FileExistsError):
                folder.make_child(name)
            folder = folder.child(name)
        self._folder = folder.path
        self._own = self._folder / uuid.uuid4().hex
        self._held = FileLock(self._own.with_suffix(_HELD))
        with _alone(self._folder):  # otherwise another process may find the lock before it is held
            self._held.acquire()

    @contextlib.contextmanager
    def choosing(self) -> Iterator[set[bytes]]:
        """Yield the hashes of the keys that other processes have claimed. None of them can claim inside the block."""
        with _alone(self._folder):
            claimed: set[bytes] = set()
            for claim in _alive(self._folder, self._own):
                with contextlib.suppress(FileNotFoundError):  # its process released it just now
                    data = claim.read_bytes()
                    claimed.update(data[start : start + _NBYTES] for start in range(0, len(data), _NBYTES))
            yield claimed

    def announce(self, keys: list[str]) -> None:
        """Replace the claims of this process. Called inside `choosing`."""
        self._own.write_bytes(hash_keys(keys).tobytes())

    def release(self) -> None:
        """Release all claims."""
        self._own.unlink(missing_ok=True)
        self._held.remove()

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def at_work(path: Path) -> bool:
    """Return whether any process is encoding into the store at `path`."""
    try:
        folder = Folder.open(path.parent).child(_FOLDER).child(path.name).path
    except FileNotFoundError:
        return False
    with _alone(folder):
        return any(True for _ in _alive(folder))


def _alone(folder: Path) -> contextlib.AbstractContextManager[object]:
    return lock(folder / "choosing", timeout=_WAIT)


def _alive(folder: Path, own: Path | None = None) -> Iterator[Path]:
    """Yield the claims of other running processes, and remove those of ended ones. Called inside `_alone`."""
    for claim in {path.with_suffix("") for path in folder.iterdir() if _NAME.fullmatch(path.name)}:
        if claim == own:
            continue
        held = FileLock(claim.with_suffix(_HELD))
        if held.acquire():  # its process has ended
            claim.unlink(missing_ok=True)
            held.remove()
        else:
            yield claim


def hashes_of(keys: list[str]) -> list[bytes]:
    """Return the hash of each key in the form that claims have."""
    return [row.tobytes() for row in hash_keys(keys)]

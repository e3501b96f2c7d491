"""Pins: stores of a cache that are not removed until they are unpinned.

A pin is an empty file, ``.pins/<store>`` in the folder of the stores. It is made under the lock of its store, under
which a removal looks for it. So no store is removed after its pin was made.
"""

from __future__ import annotations

import contextlib
from pathlib import Path, PurePath
from typing import Final

from embstore._engine.io.filesystem import explained
from embstore._engine.io.folder import Folder
from embstore._engine.io.locks import lock
from embstore.errors import NotAStoreError

_FOLDER: Final = ".pins"
_WAIT: Final = 60.0
"""Seconds to wait for a writer of the store."""


def pin(path: Path) -> None:
    """Pin the store at `path`.

    Raises
    ------
    NotAStoreError
        Another process has removed the store.
    ReadOnlyError, StoreLockedError
    """
    with lock(path, timeout=_WAIT):
        if not path.exists():
            raise NotAStoreError(path, "it was removed")
        folder = Folder.open(path.parent)
        with contextlib.suppress(FileExistsError):
            folder.make_child(_FOLDER)
            folder.sync()
        pins = folder.child(_FOLDER)
        with explained(pins.path / path.name):
            (pins.path / path.name).touch()
        pins.sync()


def unpin(path: Path) -> None:
    """Remove the pin of the store at `path`, if there is one."""
    if is_pinned(path):
        with lock(path, timeout=_WAIT):
            Folder.open(path.parent).child(_FOLDER).remove(path.name)


def is_pinned(path: PurePath) -> bool:
    """Return whether the store at `path` is pinned."""
    return isinstance(path, Path) and (path.parent / _FOLDER / path.name).exists()

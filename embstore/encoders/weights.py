"""Digests of the files of a model.

A file of gigabytes takes seconds to digest, so its digest is remembered in one small JSON file per user, with the
file's size, mtime, ctime and inode. If this memory is damaged or missing, files are digested again. When a model is
loaded, the bytes decide: `loading` digests them without the memory.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any, Final, TypeVar

from embstore._engine.io.stamps import Identity, identity_of, settled
from embstore.errors import ModelFilesError, WeightsChangedError

_T = TypeVar("_T")

logger = logging.getLogger("embstore")

_DIGEST: Final = re.compile("[0-9a-f]{32}")
_blake2b: Final = partial(blake2b, digest_size=16)
_REMEMBERED: Final = 256
"""Entries to keep. The memory is read for each digest of a large file."""
_LARGE: Final = 2**20
"""Smaller files are digested each time, in about a millisecond."""

_Entries = dict[str, tuple[Identity, str]]
"""Identity and digest of each file, by resolved path."""


def digest_file(path: str | os.PathLike[str], *, recall: bool = True) -> str:
    """Return the digest of a file's bytes: BLAKE2b-128, 32 hexadecimal digits.

    A file of a MiB or more is not read if a process of this user digested it before, with the same size, mtime, ctime
    and inode. The memory is in ``$EMBSTORE_HOME``, else in ``$XDG_CACHE_HOME/embstore``, else in
    ``~/.cache/embstore``, as ``digests.json``, and may be removed at any time.

    Parameters
    ----------
    path : str or path
    recall : bool
        False reads the file in any case, and corrects the memory.

    Raises
    ------
    WeightsChangedError
        The file changed, or was replaced, while it was read.
    OSError
        The file can't be read.
    """
    resolved = Path(path).resolve()
    now = time.time_ns()
    before = identity_of(resolved.stat())
    known = _recalled().get(str(resolved)) if before.size >= _LARGE else None
    if recall and known is not None and known[0] == before:
        return known[1]
    with resolved.open("rb") as file:
        digest = file_digest(file, _blake2b).hexdigest()
        read, opened = file.tell(), identity_of(os.fstat(file.fileno()))
    if not before == opened == identity_of(resolved.stat()) or read != before.size:
        raise WeightsChangedError(resolved)
    if before.size >= _LARGE and settled(max(before.mtime, before.ctime), now) and known != (before, digest):
        _remember(str(resolved), before, digest)
    return digest


def digest_files(folder: Path, names: Collection[str], *, recall: bool = True) -> dict[str, str]:
    """Return the digests of files of a folder by their names, sorted.

    Raises
    ------
    ModelFilesError
        A file is missing.
    WeightsChangedError, OSError
        As `digest_file`.
    """
    return dict(_of_each(lambda path: digest_file(path, recall=recall), folder, names))


def joined(digests: Mapping[str, str]) -> str:
    """Return one digest over the names and digests of files."""
    total = _blake2b()
    for name, digest in digests.items():
        total.update(f"{name}\0{digest}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def identities(folder: Path, names: Collection[str]) -> dict[str, Identity]:
    """Return the identities of files of a folder by their names, sorted. A later call shows whether they changed.

    Raises
    ------
    ModelFilesError
        A file is missing.
    """
    return dict(_of_each(lambda path: identity_of(path.stat()), folder, names))


def _of_each(look: Callable[[Path], _T], folder: Path, names: Collection[str]) -> Iterator[tuple[str, _T]]:
    for name in sorted(set(names)):
        try:
            found = look(folder / name)
        except FileNotFoundError as error:
            raise ModelFilesError(folder, name) from error
        yield name, found


# -- the memory of digests --------------------------------------------------------------------


def _memory() -> Path | None:
    """Return the path of the memory of digests. None without a home folder."""
    home, cache = os.environ.get("EMBSTORE_HOME"), os.environ.get("XDG_CACHE_HOME", "")
    if home:
        return Path(home).absolute() / "digests.json"
    try:
        # The specification requires that a relative $XDG_CACHE_HOME is ignored.
        folder = Path(cache) if Path(cache).is_absolute() else Path.home() / ".cache"
    except RuntimeError as error:
        logger.debug("digests are not remembered: %s", error)
        return None
    return folder / "embstore" / "digests.json"


def _recalled() -> _Entries:
    """Return the valid entries of the memory, whose file may hold anything."""
    path = _memory()
    try:
        value: Any = {} if path is None else json.loads(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError(f"expected an object, found {type(value).__name__}")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        logger.debug("cannot read remembered digests, files are digested again: %s: %s", path, error)
        return {}
    entries: _Entries = {}
    for name, entry in value.items():
        match entry:
            case [int(size), int(mtime), int(ctime), int(inode), str(digest)] if _DIGEST.fullmatch(digest):
                entries[name] = (Identity(size, mtime, ctime, inode), digest)
    return entries


def _remember(path: str, identity: Identity, digest: str) -> None:
    """Add a digest to the memory. Its file is replaced whole, so another process reads the old file or the new one.

    If two processes write at once, the last one wins, and the other one's file is digested once more.
    """
    memory = _memory()
    if memory is None:
        return
    entries = {known: value for known, value in _recalled().items() if known != path}
    entries[path] = (identity, digest)
    newest = {name: [*known, found] for name, (known, found) in [*entries.items()][-_REMEMBERED:]}
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        # Not synced, unlike durable files: entries are checked, so a torn file after a power cut does no harm.
        fresh = memory.with_name(f".digests-{secrets.token_hex(4)}")
        try:
            fresh.write_text(json.dumps(newest, indent=0))
            os.replace(fresh, memory)
        finally:
            fresh.unlink(missing_ok=True)
    except OSError as error:
        logger.debug("digests are not remembered in %s: %s", memory, error)

"""Digests of files of weights, and of the tensors of a module.

A file of gigabytes takes seconds to digest, so its digest is remembered in one small JSON file per user, with the
file's size, mtime and inode. If this memory is damaged or missing, files are digested again.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from embstore._engine.io.stamps import Stamp, settled, stamp_of
from embstore.errors import ModelFilesError, WeightsChangedError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

_T = TypeVar("_T")

logger = logging.getLogger("embstore")

_DIGEST: Final = re.compile("[0-9a-f]{32}")
_blake2b: Final = partial(blake2b, digest_size=16)
_REMEMBERED: Final = 4096
"""Entries to keep. Every process reads the whole memory."""

_Identity = tuple[int, int, int]
"""Size in bytes, mtime in ns and inode of a file."""

_Entries = dict[str, tuple[int, int, int, str]]
"""Identity and digest of each file, by resolved path."""

_lock: Final = threading.Lock()
_known: tuple[tuple[Path, _Identity] | None, _Entries] = (None, {})
"""The path and identity of the memory's file when it was last read, and its entries."""


# -- files ------------------------------------------------------------------------------------


def digest_file(path: str | os.PathLike[str]) -> str:
    """Return the digest of a file's bytes: BLAKE2b-128, 32 hexadecimal digits.

    The file is not read if a process of this user digested it before, with the same size, mtime and inode. The memory
    is in ``$EMBSTORE_HOME``, else in ``$XDG_CACHE_HOME/embstore``, else in
    ``~/.cache/embstore``, as ``digests.json``, and may be removed at any time.

    Raises
    ------
    WeightsChangedError
        The file changed, or was replaced, while it was read.
    OSError
        The file can't be read.
    """
    resolved = Path(path).resolve()
    now = time.time_ns()
    before = _identity(resolved.stat())
    remembered = _recalled().get(str(resolved))
    if remembered is not None and remembered[:3] == before:
        return remembered[3]
    with resolved.open("rb") as file:
        digest = file_digest(file, _blake2b).hexdigest()
        read, opened = file.tell(), _identity(os.fstat(file.fileno()))
    if not before == opened == _identity(resolved.stat()) or read != before[0]:
        raise WeightsChangedError(resolved)
    if settled(Stamp(*before[:2]), now):
        _remember(str(resolved), (*before, digest))
    return digest


def digest_files(folder: Path, names: Sequence[str]) -> str:
    """Return one digest over the names and digests of files of a folder, in the order of their names.

    Raises
    ------
    ModelFilesError
        A file is missing.
    WeightsChangedError, OSError
        As `digest_file`.
    """
    total = _blake2b()
    for name, digest in _of_each(digest_file, folder, names):
        total.update(f"{name}\0{digest}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def stamps(folder: Path, names: Sequence[str]) -> tuple[tuple[str, int, int], ...]:
    """Return the name, size in bytes and mtime in ns of files of a folder. A later call shows whether they changed.

    Raises
    ------
    ModelFilesError
        A file is missing.
    """
    return tuple((name, *stamp_of(status)) for name, status in _of_each(Path.stat, folder, names))


def _of_each(look: Callable[[Path], _T], folder: Path, names: Sequence[str]) -> Iterator[tuple[str, _T]]:
    for name in sorted(set(names)):
        try:
            found = look(folder / name)
        except FileNotFoundError as error:
            raise ModelFilesError(folder, name) from error
        yield name, found


def _identity(status: os.stat_result) -> _Identity:
    return (*stamp_of(status), status.st_ino)


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
    """Return the memory. Read its file again only if that changed."""
    global _known
    path = _memory()
    if path is None:
        return {}
    try:
        key = (path, _identity(path.stat()))
        if _known[0] != key:
            _known = (key, _parsed(json.loads(path.read_bytes())))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        logger.debug("cannot read remembered digests, files are digested again: %s: %s", path, error)
        return {}
    return _known[1]


def _parsed(value: Any) -> _Entries:
    """Return the valid entries of JSON that may hold anything."""
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, found {type(value).__name__}")
    entries: _Entries = {}
    for path, entry in value.items():
        match entry:
            case [int(size), int(mtime), int(inode), str(digest)] if _DIGEST.fullmatch(digest):
                entries[path] = (size, mtime, inode, digest)
    return entries


def _remember(path: str, entry: tuple[int, int, int, str]) -> None:
    """Add a digest to the memory. Its file is replaced whole, so another process reads the old file or the new one.

    If two processes write at once, the last one wins, and the other one's file is digested once more.
    """
    memory = _memory()
    if memory is None:
        return
    with _lock:
        entries = {known: value for known, value in _recalled().items() if known != path}
        entries[path] = entry
        newest = dict([*entries.items()][-_REMEMBERED:])
        try:
            memory.parent.mkdir(parents=True, exist_ok=True)
            # Not synced, unlike durable files: `_parsed` checks entries, so a torn file after a power cut does no harm.
            fresh = memory.with_name(f".digests-{secrets.token_hex(4)}")
            try:
                fresh.write_text(json.dumps(newest, indent=0))
                os.replace(fresh, memory)
            finally:
                fresh.unlink(missing_ok=True)
        except OSError as error:
            logger.debug("digests are not remembered in %s: %s", memory, error)


# -- modules ----------------------------------------------------------------------------------


def digest_module(module: Module) -> str:
    """Return the digest of a module's state: names, dtypes, shapes and bits of its ``state_dict``, in order of names.

    The device of its tensors and their layout in memory do not matter. The digest does not cover the code, nor buffers
    that are not persistent.

    Returns
    -------
    str
        BLAKE2b-128, 32 hexadecimal digits.

    Raises
    ------
    TypeError
        A value of the state is not a plain tensor: it is quantized, sparse, without values, or of another class.
    """
    import torch

    total = _blake2b()
    for name, value in sorted(module.state_dict().items()):
        plain = type(value) in (torch.Tensor, torch.nn.Parameter) and value.layout == torch.strided
        if not plain or value.is_meta or value.is_quantized:
            found = value.layout if isinstance(value, torch.Tensor) else type(value).__name__
            raise TypeError(f"{name!r} can't be digested: expected a tensor with all its values, found {found}")
        total.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\n".encode())
        plainly = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        total.update(plainly.view(torch.uint8).numpy())
    return total.hexdigest()


class ModuleWeights:
    """The digest of a module's state, and a cheap check whether the state changed.

    Attributes
    ----------
    digest : str
        Result of `digest_module` when this object was created.
    """

    def __init__(self, module: Module) -> None:
        self._module = module
        self.digest = digest_module(module)
        self._look()

    def _look(self) -> None:
        self._seen = self._signs()
        # While these tensors are referenced, other weights can't get their memory and so the same address.
        self._held = [value.detach() for value in self._module.state_dict().values()]

    def _signs(self) -> list[tuple[Any, ...]] | None:
        """Return name, address, count of changes and layout of each tensor. None if PyTorch does not count changes."""
        state: dict[str, Tensor] = self._module.state_dict(keep_vars=True)
        if any(value.is_inference() for value in state.values()):
            return None
        return [
            (name, value.data_ptr(), value._version, value.dtype, value.shape, value.stride(), value.device)
            for name, value in state.items()
        ]

    def unchanged(self) -> bool:
        """Return whether the weights are those that were digested."""
        if self._seen is not None and self._seen == self._signs():
            return True
        if digest_module(self._module) != self.digest:
            return False
        self._look()
        return True

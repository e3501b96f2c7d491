"""Durable files: written under a temporary name, synced, then renamed.

A rename before the sync lost committed rows in simulated power cuts. A rename is durable once its folder is synced.
`folder` has the operations on names, `filesystem` the calls that Python lacks.
"""

from __future__ import annotations

import contextlib
import os
import resource
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from embstore._engine.io.filesystem import explained, start_writeback, sync_descriptor, sync_path
from embstore._engine.io.folder import PARTIAL, Folder, check_name
from embstore._engine.io.steps import step

_MOST_OPEN: Final = 64
"""Files that are written and not yet synced: the disk has work while the processor prepares the next files."""

_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

Buffer = bytes | memoryview
Trailer = tuple[int, bytes]
"""Bytes at an offset past the parts of a file. The hole between them reads as zeros."""


class PendingFile:
    """A file that has a temporary name until `publish` renames it."""

    __slots__ = ("_descriptor", "_place", "_temporary", "folder", "name", "partial")

    def __init__(
        self, folder: Folder, partial: str, name: str, parts: Sequence[Buffer], trailer: Trailer | None
    ) -> None:
        check_name(folder.path, name)
        self.folder = folder
        self.name = name
        self.partial = partial
        self._place = f"{folder.path}/{name}"  # joining paths of pathlib took a tenth of a small commit
        self._temporary = f"{folder.path}/{partial}"
        self._descriptor: int | None = None
        with explained(self._place):
            self._write(parts, trailer)

    def _write(self, parts: Sequence[Buffer], trailer: Trailer | None) -> None:
        path, where = self._temporary, self.folder.descriptor
        step("create", path)
        try:
            self._descriptor = os.open(self.partial, _NEW_FILE, 0o666, dir_fd=where)
        except FileExistsError:  # a killed writer left it behind
            os.unlink(self.partial, dir_fd=where)
            self._descriptor = os.open(self.partial, _NEW_FILE, 0o666, dir_fd=where)
        position = 0
        try:
            for part in parts:
                step("write", path, (position, part))
                position = _write_all(self._descriptor, part, position)
            if trailer is not None:
                step("write", path, trailer)
                _write_all(self._descriptor, trailer[1], trailer[0])
            start_writeback(self._descriptor)
        except BaseException:
            self.drop()
            raise

    def sync(self) -> None:
        """Sync the content, and close the file. The second call does nothing."""
        if self._descriptor is None:
            return
        with explained(self._place):
            try:
                step("fsync", self._temporary)
                sync_descriptor(self._descriptor)
            except BaseException:
                # A failed write or fsync is not retried on the same file: its pages may be lost already.
                self.drop()
                raise
            self._close()

    def publish(self) -> None:
        """Sync the content, then give the file its name. The name is durable once the folder is synced."""
        self.sync()
        with explained(self._place):
            try:
                step("rename", self._place, self.partial)
                where = self.folder.descriptor
                os.rename(self.partial, self.name, src_dir_fd=where, dst_dir_fd=where)
            except BaseException:
                self.drop()
                raise

    def drop(self) -> None:
        """Remove the file."""
        self._close()
        with contextlib.suppress(OSError):  # the next writer removes it
            os.unlink(self.partial, dir_fd=self.folder.descriptor)

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class WriteBatch:
    """Files that are written in turn, then synced, then renamed, for a ``with`` block.

    The kernel writes each file to the disk while the next ones are written. No file gets its name before `publish`, or
    before the end of the block. A block that raises removes all files that were not published.
    """

    def __init__(self) -> None:
        # Each file that is not synced yet is an open descriptor, and a process may have few of these.
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most = _MOST_OPEN if allowed == resource.RLIM_INFINITY else max(1, min(_MOST_OPEN, allowed // 8))
        self._open: dict[PendingFile, None] = {}
        self._pending: dict[int, dict[PendingFile, None]] = {}  # by the folder's descriptor
        self._written: Counter[int] = Counter()  # files so far, likewise

    def write(
        self, folder: Folder, name: str, parts: Sequence[Buffer], *, trailer: Trailer | None = None
    ) -> PendingFile:
        """Write a file under a temporary name; see `replace_file`."""
        if len(self._open) == self._most:
            self._sync_one()
        count = self._written[folder.descriptor]
        self._written[folder.descriptor] += 1
        file = PendingFile(folder, f"{PARTIAL}-{count}" if count else PARTIAL, name, parts, trailer)
        self._pending.setdefault(folder.descriptor, {})[file] = None
        self._open[file] = None
        return file

    def sync(self) -> None:
        """Sync the content of all files. They keep their temporary names."""
        while self._open:
            self._sync_one()

    def _sync_one(self) -> None:
        oldest = next(iter(self._open))
        del self._open[oldest]
        oldest.sync()

    def publish(self, files: Iterable[PendingFile] | None = None) -> None:
        """Sync and rename files, by default all that are pending. Then sync their folders."""
        chosen = self.pending() if files is None else list(files)
        self.rename(chosen)
        for folder in {file.folder.descriptor: file.folder for file in chosen}.values():
            folder.sync()

    def rename(self, files: Iterable[PendingFile]) -> None:
        """Sync all files, then rename them. Their folders are not synced, so a power cut may undo the renames."""
        chosen = list(files)
        for file in chosen:
            file.sync()
        for file in chosen:
            file.publish()
            self._open.pop(file, None)
            del self._pending[file.folder.descriptor][file]

    def discard(self) -> None:
        """Remove the files that were not published."""
        for file in self.pending():
            file.drop()
        self._pending.clear()
        self._open.clear()

    def pending(self, folder: Folder | None = None) -> list[PendingFile]:
        """List the files that were not published, of all folders or of one."""
        if folder is not None:
            return list(self._pending.get(folder.descriptor, ()))
        return [file for files in self._pending.values() for file in files]

    def __enter__(self) -> WriteBatch:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.publish()
        finally:
            self.discard()


def replace_file(folder: Folder, name: str, parts: Sequence[Buffer], *, trailer: Trailer | None = None) -> None:
    """Write the file `name` whole and durably: temporary name, fsync, rename. The caller syncs the folder.

    Parameters
    ----------
    folder : Folder
    name : str
    parts : sequence of bytes-like
        Written one after the other from the start.
    trailer : (int, bytes), optional
        Bytes at an offset past the parts. The hole between them reads as zeros.
    """
    PendingFile(folder, PARTIAL, name, parts, trailer).publish()


def _write_all(descriptor: int, data: Buffer, position: int) -> int:
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(descriptor, view, position)
        position += written
        view = view[written:]
    return position


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file, which replaces `path` when the block ends: synced, then renamed.

    If the block raises, the temporary file is removed and the file at `path` stays. A killed process leaves a temporary
    file behind. It has a hidden, random name, because no lock is held here and several processes may write at once.
    """
    partial = path.with_name(f".{path.name[:128]}.{secrets.token_hex(4)}{PARTIAL}")
    with explained(path):
        try:
            step("create", partial)
            yield partial
            descriptor = os.open(partial, os.O_RDONLY | os.O_CLOEXEC)
            try:
                step("fsync", partial)
                sync_descriptor(descriptor)
            finally:
                os.close(descriptor)
            step("rename", path)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    sync_path(path.parent)


def sibling(path: Path) -> Path:
    """Return the path of the temporary folder beside a store, in which a store is built or compacted."""
    return path.with_name(f".{path.name}{PARTIAL}")


def remove_tree(path: Path, *, first: str | None = None) -> None:
    """Remove a folder beside a store durably, if it exists. A link is removed, and its target stays.

    Parameters
    ----------
    path : Path
    first : str, optional
        File in the folder that is removed before the rest.
    """
    if os.path.lexists(path):
        parent = Folder.open(path.parent)
        parent.sync()  # the rename that put the folder there may not be on disk yet
        parent.remove(path.name, first=first)
        parent.sync()

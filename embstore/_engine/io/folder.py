"""Open folders: their files and folders are opened relative to a descriptor.

So a folder that is swapped under the same path (a compaction) can't mix with one that was opened before. Symbolic
links, and everything but regular files, are refused in a folder. `durable` writes files, `locks` excludes other
writers.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, Final, Protocol, TypeVar

from embstore._engine.io.filesystem import explained, sync_descriptor
from embstore._engine.io.steps import step
from embstore.errors import CorruptStoreError

T = TypeVar("T")

PARTIAL: Final = ".partial"
"""The temporary name in a folder, which has one writer. Several files at once have a number after it."""
Signature = tuple[int, int, int]
_NOT_DIRECT: Final = frozenset({errno.ELOOP, errno.ENOTDIR, errno.EMLINK})
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def is_partial(name: str) -> bool:
    """Return whether a name in a folder is a temporary one."""
    stem, _, number = name.rpartition("-")
    return name == PARTIAL or (stem == PARTIAL and number.isdigit())


def check_name(path: PurePath, name: str) -> None:
    """Raise unless `name` is that of a file or folder directly in the folder at `path`.

    Names come from records and indexes, which may be forged.

    Raises
    ------
    CorruptStoreError
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise CorruptStoreError(path, f"expected the name of a file or folder in it, found {name!r}")


class OpenFile:
    """A file open for reading, closed at the end of its block. Mapping a column opens thousands."""

    __slots__ = ("descriptor", "size")

    def __init__(self, descriptor: int, size: int) -> None:
        self.descriptor = descriptor
        self.size = size

    def __enter__(self) -> tuple[int, int]:
        return self.descriptor, self.size

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)


class ReadableFolder(Protocol):
    """A store's folder, or one in it, on this machine (`Folder`) or at a URL (`remote.RemoteFolder`)."""

    @property
    def path(self) -> PurePath:
        """The path of the folder, for messages and errors."""

    @property
    def origin(self) -> tuple[str, dict[str, Any] | None]:
        """The path or URL for another process to open, and the options for a URL."""

    @property
    def last_read(self) -> object:
        """Token that changes after each read of a file by its name."""

    def child(self, name: str) -> ReadableFolder:
        """Return the folder `name` in this one."""

    def read(self, name: str, *, most: int) -> bytes:
        """Read the whole file `name`, which may have at most `most` bytes."""

    def read_marked(self, name: str, parse: Callable[[PurePath, bytes], T], *, most: int) -> tuple[Signature, T]:
        """Read a whole file. Return its `signature`, and its content as `parse` returns it."""

    def contents(
        self,
        names: Iterable[str],
        parse: Callable[[PurePath, bytes | memoryview], T],
        *,
        most: int,
        held: int | None = None,
    ) -> Iterator[T]:
        """Read whole files in turn, and yield the content of each as `parse` returns it.

        Parameters
        ----------
        names
        parse : callable
            Takes a file's path and content.
        most : int
            Largest size of a file in bytes.
        held : int, optional
            Usual memory of one file in bytes. It limits how many are read at once.
        """

    def signature(self, name: str) -> Signature:
        """Return a value that changes whenever the file `name` is replaced."""

    def replaced(self) -> bool:
        """Return whether the path leads to another folder by now, or to no folder."""


class Folder:
    """An open folder. Its files and folders are opened relative to its descriptor."""

    __slots__ = ("__weakref__", "_children", "_close", "descriptor", "path")

    def __init__(self, descriptor: int, path: Path) -> None:
        self.descriptor = descriptor
        self.path = path
        self._children: dict[str, Folder] = {}
        self._close = weakref.finalize(self, os.close, descriptor)
        self._close.atexit = False

    @classmethod
    def open(cls, path: Path) -> Folder:
        """Open the folder at `path`, following links that lead to it."""
        return cls(os.open(path, _FOLDER), path)

    def identity(self) -> tuple[int, int]:
        """Return device and inode, which differ from those of a folder that replaced this one."""
        found = os.fstat(self.descriptor)
        return found.st_dev, found.st_ino

    def child(self, name: str) -> Folder:
        """Return the folder `name` in this one. It is opened once and kept until it is removed from the disk."""
        check_name(self.path, name)
        kept = self._children.get(name)
        if kept is None or os.fstat(kept.descriptor).st_nlink == 0:
            path = self.path / name
            try:
                descriptor = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=self.descriptor)
            except OSError as error:
                if error.errno in _NOT_DIRECT:
                    raise CorruptStoreError(path, "expected a folder, not a link or a file") from error
                error.filename = str(path)
                raise
            self._children[name] = Folder(descriptor, path)
        return self._children[name]

    def names(self) -> list[str]:
        """List the names in this folder."""
        # All copies of a descriptor share one position in the list: those of other threads and of forked processes.
        descriptor = os.open(".", _FOLDER, dir_fd=self.descriptor)
        try:
            return os.listdir(descriptor)
        finally:
            os.close(descriptor)

    def opened(self, name: str) -> OpenFile:
        """Open the regular file `name` for reading, for a ``with`` block that gets its descriptor and size."""
        check_name(self.path, name)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO would block
        try:
            descriptor = os.open(name, flags, dir_fd=self.descriptor)
        except OSError as error:
            if error.errno in _NOT_DIRECT or error.errno == errno.ENXIO:
                raise CorruptStoreError(self.path / name, "expected a regular file") from error
            error.filename = str(self.path / name)
            raise
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(descriptor)
            raise CorruptStoreError(self.path / name, "expected a regular file")
        return OpenFile(descriptor, found.st_size)

    def read(self, name: str, *, most: int) -> bytes:
        """Read the whole file `name`, which may have at most `most` bytes."""
        with self.opened(name) as (descriptor, size):
            if size > most:
                raise CorruptStoreError(self.path / name, f"expected at most {most:,} bytes, found {size:,}")
            return read_exactly(descriptor, size, 0)

    def contents(
        self,
        names: Iterable[str],
        parse: Callable[[PurePath, bytes | memoryview], T],
        *,
        most: int,
        held: int | None = None,
    ) -> Iterator[T]:
        """Read whole files in turn, and yield the content of each as `parse` returns it."""
        for name in names:
            yield parse(self.path / name, self.read(name, most=most))

    def read_marked(self, name: str, parse: Callable[[PurePath, bytes], T], *, most: int) -> tuple[Signature, T]:
        """Read a whole file. Return its `signature`, and its content as `parse` returns it."""
        signature = self.signature(name)  # before the read, so that a replacement in between shows at the next look
        return signature, parse(self.path / name, self.read(name, most=most))

    @property
    def last_read(self) -> object:
        """Token that changes after each read. Local folders don't count reads, so it is always new."""
        return object()

    @property
    def origin(self) -> tuple[str, dict[str, Any] | None]:
        """The path, which has no options."""
        return str(self.path), None

    def replaced(self) -> bool:
        """Return whether the path leads to another folder by now, or to no folder."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return True
        return (found.st_dev, found.st_ino) != self.identity()

    def signature(self, name: str) -> Signature:
        """Return inode, size and ctime (ns), which change whenever the file `name` is replaced."""
        check_name(self.path, name)
        found = os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        return found.st_ino, found.st_size, found.st_ctime_ns

    def remove_partials(self) -> None:
        """Remove the temporary files of a killed writer."""
        for name in self.names():
            if is_partial(name):
                self.remove(name)

    def link_from(self, other: Folder, name: str) -> None:
        """Make the entry `name` of another folder one of this folder too. Files are linked, folders are made anew.

        Raises
        ------
        FileExistsError, OSError
        """
        check_name(self.path, name)
        path = self.path / name
        found = os.stat(name, dir_fd=other.descriptor, follow_symlinks=False)
        with explained(path):
            if stat.S_ISDIR(found.st_mode):
                source, target = other.child(name), self.make_child(name)
                for entry in source.names():
                    target.link_from(source, entry)
                os.fchmod(target.descriptor, stat.S_IMODE(found.st_mode))
                target.sync()
            else:
                step("link", path, str(other.path / name))
                os.link(name, name, src_dir_fd=other.descriptor, dst_dir_fd=self.descriptor, follow_symlinks=False)

    def sync(self) -> None:
        """Make the renames and removals in this folder durable."""
        with explained(self.path):
            step("sync_folder", self.path)
            sync_descriptor(self.descriptor)

    def make_child(self, name: str) -> Folder:
        """Make the folder `name`. Its entry is durable after `sync`."""
        check_name(self.path, name)
        path = self.path / name
        with explained(path):
            step("mkdir", path)
            os.mkdir(name, 0o777, dir_fd=self.descriptor)
        return self.child(name)

    def remove(self, name: str, *, first: str | None = None) -> None:
        """Remove the file, the link or the folder `name`, if it exists. The targets of links stay.

        Parameters
        ----------
        name : str
        first : str, optional
            File in the folder `name` that is removed before the rest.
        """
        check_name(self.path, name)
        self._children.pop(name, None)
        path = self.path / name
        with explained(path), contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(os.stat(name, dir_fd=self.descriptor, follow_symlinks=False).st_mode):
                if first is not None:
                    self.child(name).remove(first)
                    self._children.pop(name, None)
                step("rmtree", path)
                shutil.rmtree(name, dir_fd=self.descriptor)
            else:
                step("unlink", path)
                os.unlink(name, dir_fd=self.descriptor)


def read_exactly(descriptor: int, nbytes: int, position: int) -> bytes:
    """Read `nbytes` at `position`, or fewer from a shorter file."""
    pieces = []
    while nbytes > 0 and (piece := os.pread(descriptor, nbytes, position)):
        pieces.append(piece)
        position += len(piece)
        nbytes -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def read_into(descriptor: int, buffers: Sequence[memoryview], position: int) -> int:
    """Fill the buffers in turn from `position`. Return the number of bytes read, which is smaller at the file's end."""
    total = 0
    for buffer in buffers:
        view = buffer
        while view:
            got = os.preadv(descriptor, [view], position + total)
            if got == 0:
                return total
            total += got
            view = view[got:]
    return total

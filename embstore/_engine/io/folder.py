"""Durable files and locks: the only place that makes, replaces, extends, syncs, renames or removes a file.

A `Folder` is opened once and everything in it is reached relative to its descriptor, so that a
folder exchanged under the same path (a compaction) can't mix into what was opened before. Symbolic
links and anything but regular files are refused inside it.

Every operation that changes the disk first calls `_step`: the one seam at which the tests kill the
process, or record what a power cut would leave. What is in the files is no concern of this module.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import logging
import os
import resource
import secrets
import shutil
import socket
import stat
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Final, TypeVar

from embstore._engine.io.threads import may_start_threads
from embstore.errors import (
    CorruptStoreError,
    NetworkFileSystemError,
    ReadOnlyError,
    StorageFullError,
    StoreExistsError,
    StoreLockedError,
    StoreReplacedError,
)

__all__ = [
    "PARTIAL",
    "Folder",
    "Held",
    "Together",
    "exchange",
    "is_partial",
    "lock",
    "move_into_place",
    "refuse_network",
    "replacing",
    "sibling",
]

logger = logging.getLogger("embstore")

PARTIAL: Final = ".partial"
"""The temporary name in a folder: there is one writer. Several files at once have a number behind it."""

_AT_ONCE: Final = 8
"""Files that are synced at the same time."""
_MOST_WAITING: Final = 64
"""Files that are written and not yet synced: the disk has work for as long as the processor has other things to do."""
_WORTH_A_THREAD: Final = 2**20
"""Bytes of a file whose sync takes longer than starting a thread for it."""

Buffer = bytes | memoryview
Signature = tuple[int, int, int]
T = TypeVar("T")

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DENIED: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_NOT_DIRECT: Final = frozenset({errno.ELOOP, errno.ENOTDIR, errno.EMLINK})
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2  # <linux/fs.h>
_RENAME_SWAP, _RENAME_EXCL = 2, 4  # macOS <sys/stdio.h>
_NETWORK: Final = frozenset(
    (
        *("9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2"),
        *("orangefs", "panfs", "prl_fs", "smb3", "smbfs", "vboxsf", "virtiofs", "wekafs"),
    )
)

step_hook: Callable[[str, str, Any], None] | None = None
"""Called before each operation with its name, the path and its data. For tests alone."""


def _step(operation: str, path: Path, data: Any = None) -> None:
    if step_hook is not None:
        step_hook(operation, str(path), data)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the errors that a user can mend into ours."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFullError(path, error) from error
        if error.errno in _DENIED:
            raise ReadOnlyError(path, error.strerror or "permission denied") from error
        raise


def is_partial(name: str) -> bool:
    """Tell whether a name in a folder is a temporary one."""
    stem, _, number = name.rpartition("-")
    return name == PARTIAL or (stem == PARTIAL and number.isdigit())


def _sync(descriptor: int) -> None:
    """Sync to the medium itself: macOS's fsync stops at the drive's cache."""
    if sys.platform == "darwin":  # pragma: no cover
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


class OpenFile:
    """A file open for reading, closed at the end of its block. Thousands are opened to map a column."""

    __slots__ = ("descriptor", "size")

    def __init__(self, descriptor: int, size: int) -> None:
        self.descriptor = descriptor
        self.size = size

    def __enter__(self) -> tuple[int, int]:
        return self.descriptor, self.size

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)


class Folder:
    """An open folder; everything in it is reached relative to its descriptor."""

    __slots__ = ("__weakref__", "_children", "_close", "descriptor", "path")

    local = True
    """Whether its files have descriptors, and can be mapped."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self.descriptor = descriptor
        self.path = path
        self._children: dict[str, Folder] = {}
        self._close = weakref.finalize(self, os.close, descriptor)
        self._close.atexit = False

    @classmethod
    def open(cls, path: Path) -> Folder:
        """Open the folder at `path`, following links that lead to it."""
        return cls(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), path)

    def identity(self) -> tuple[int, int]:
        """Return device and inode, which tell this folder from one that took its path."""
        found = os.fstat(self.descriptor)
        return found.st_dev, found.st_ino

    def child(self, name: str) -> Folder:
        """Return the folder `name` in this one; opened once, and kept until somebody removes it."""
        kept = self._children.get(name)
        if kept is None or os.fstat(kept.descriptor).st_nlink == 0:
            path = self.path / name
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                descriptor = os.open(name, flags, dir_fd=self.descriptor)
            except OSError as error:
                if error.errno in _NOT_DIRECT:
                    raise CorruptStoreError(path, "expected a folder, not a link or a file") from error
                error.filename = str(path)
                raise
            self._children[name] = Folder(descriptor, path)
        return self._children[name]

    def names(self) -> list[str]:
        """List the names in this folder."""
        return os.listdir(self.descriptor)

    def opened(self, name: str) -> OpenFile:
        """Open the regular file `name` for reading, for a ``with`` block: gives its descriptor and size."""
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
        return self.read_on(name, 0, most=most)

    def read_on(self, name: str, position: int, *, most: int, after: bytes = b"") -> bytes:
        """Read what the file `name`, which may have at most `most` bytes, has from `position` on.

        Raises
        ------
        StoreReplacedError
            It is shorter by now, or what lies before the position is not `after`: what was read was cut off.
        """
        with self.opened(name) as (descriptor, size):
            if size > most:
                raise CorruptStoreError(self.path / name, f"it has {size:,} bytes, at most {most:,} are allowed")
            start = position - len(after)
            data = read_exactly(descriptor, max(0, size - start), start)
        if size < position or not data.startswith(after):
            raise StoreReplacedError(self.path, f"what was read of {name} was given up")
        return data[len(after) :] if after else data

    def contents(
        self, names: Iterable[str], parse: Callable[[Path, bytes], T], *, most: int, held: int | None = None
    ) -> Iterator[T]:
        """Read whole files in turn, and give what `parse` makes of them.

        Parameters
        ----------
        names
        parse : callable
            Takes a file's path and content.
        most : int
            Bytes that a file may have.
        held : int, optional
            Bytes of memory that one takes, as a rule; for those who read several at once.
        """
        for name in names:
            yield parse(self.path / name, self.read(name, most=most))

    def read_marked(self, name: str, parse: Callable[[Path, bytes], T], *, most: int) -> tuple[Signature, T]:
        """Read a whole file: its `signature`, and what `parse` makes of it."""
        signature = self.signature(name)  # before the read: a replacement in between shows later
        return signature, parse(self.path / name, self.read(name, most=most))

    @property
    def last_read(self) -> object:
        """What is another object after each read by name; here always, since nobody counts."""
        return object()

    @property
    def origin(self) -> tuple[str, dict[str, Any] | None]:
        """Where another process opens it, and the options for a URL."""
        return str(self.path), None

    def replaced(self) -> bool:
        """Tell whether another folder is at this one's path, or none."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return True
        return (found.st_dev, found.st_ino) != self.identity()

    def signature(self, name: str) -> Signature:
        """Return what changes whenever the file `name` is replaced: inode, size, time of change (ns)."""
        found = os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        return found.st_ino, found.st_size, found.st_ctime_ns

    def replace(self, name: str, parts: Sequence[Buffer], *, trailer: tuple[int, bytes] | None = None) -> None:
        """Write the file `name` whole and durably: temporary name, fsync, rename.

        Renaming before the fsync lost committed rows in simulated power cuts. The rename itself is
        durable only after `sync`.

        Parameters
        ----------
        name : str
        parts : sequence of bytes-like
            Written one after the other from the start.
        trailer : (int, bytes), optional
            Bytes at an offset past the parts; what lies between is a hole, and reads as zeros.
        """
        _Written(self, PARTIAL, name, parts, trailer).land()

    def extend(self, name: str, data: bytes, position: int) -> None:
        """Write to the end of the file `name`, at `position`, durably; what lies past it is cut off before.

        The one write into a file that has its name: who reads it must be able to tell a part that is not whole. If it
        fails, what was written is cut off again. What was written whole is left there, if something else interrupts its
        sync: others may have read it.
        """
        path = self.path / name
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        with _explained(path):
            descriptor = os.open(name, flags, dir_fd=self.descriptor)
            try:
                size = os.fstat(descriptor).st_size
                if size < position:
                    raise StoreReplacedError(self.path, f"what was read of {name} was given up")
                if size > position:
                    _step("truncate", path, position)
                    os.ftruncate(descriptor, position)
                _step("write", path, (position, data))
                try:
                    _write_all(descriptor, data, position)
                except BaseException:
                    os.ftruncate(descriptor, position)
                    raise
                try:
                    _step("fsync", path)
                    _sync(descriptor)
                except OSError:
                    os.ftruncate(descriptor, position)
                    raise
            finally:
                os.close(descriptor)

    def remove_partials(self) -> None:
        """Remove what a killed writer left under temporary names."""
        for name in self.names():
            if is_partial(name):
                self.remove(name)

    def sync(self) -> None:
        """Make the renames and removals in this folder durable."""
        with _explained(self.path):
            _step("sync_folder", self.path)
            _sync(self.descriptor)

    def make_child(self, name: str) -> Folder:
        """Make the folder `name`; its entry is durable after `sync`."""
        path = self.path / name
        with _explained(path):
            _step("mkdir", path)
            os.mkdir(name, 0o777, dir_fd=self.descriptor)
        return self.child(name)

    def remove(self, name: str) -> None:
        """Remove the file `name`, if it is there."""
        path = self.path / name
        with _explained(path), contextlib.suppress(FileNotFoundError):
            _step("unlink", path)
            os.unlink(name, dir_fd=self.descriptor)

    def remove_child(self, name: str) -> None:
        """Remove the folder `name` with all that is in it, if it is there."""
        self._children.pop(name, None)
        path = self.path / name
        with _explained(path), contextlib.suppress(FileNotFoundError):
            _step("rmtree", path)
            shutil.rmtree(name, dir_fd=self.descriptor)


class _Written:
    """A file under a temporary name, which gets its own once it is synced."""

    __slots__ = ("_descriptor", "_name", "_nbytes", "_sync", "folder", "partial")

    def __init__(
        self, folder: Folder, partial: str, name: str, parts: Sequence[Buffer], trailer: tuple[int, bytes] | None
    ) -> None:
        self.folder = folder
        self.partial = partial
        self._name = name
        self._sync: Future[None] | None = None
        with _explained(folder.path / name):
            self._descriptor = self._write(parts, trailer)

    def _write(self, parts: Sequence[Buffer], trailer: tuple[int, bytes] | None) -> int:
        path, where = self.folder.path / self.partial, self.folder.descriptor
        _step("create", path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.partial, dir_fd=where)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self.partial, flags, 0o666, dir_fd=where)
        try:
            position = 0
            for part in parts:
                _step("write", path, (position, part))
                position = _write_all(descriptor, part, position)
            if trailer is not None:
                _step("write", path, trailer)
                _write_all(descriptor, trailer[1], trailer[0])
        except BaseException:
            os.close(descriptor)
            self._remove()
            raise
        self._nbytes = position  # what lies between that and the trailer is a hole
        return descriptor

    def sync_in(self, pool: ThreadPoolExecutor) -> None:
        """Have it synced in a thread meanwhile, if it is large enough to be worth one."""
        if self._nbytes >= _WORTH_A_THREAD:
            with contextlib.suppress(RuntimeError):  # the interpreter is shutting down, and starts no thread any more
                self._sync = pool.submit(_sync, self._descriptor)

    def land(self) -> None:
        """Give it its name, now that it is synced."""
        with _explained(self.folder.path / self._name):
            try:
                try:
                    _step("fsync", self.folder.path / self.partial)
                    if self._sync is None:
                        _sync(self._descriptor)
                    else:
                        self._sync.result()
                finally:
                    self._close()
                _step("rename", self.folder.path / self._name, self.partial)
                where = self.folder.descriptor
                os.rename(self.partial, self._name, src_dir_fd=where, dst_dir_fd=where)
            except BaseException:
                # A failed write or fsync is not retried on that file: its pages may be lost already.
                self._remove()
                raise

    def drop(self) -> None:
        """Give it up."""
        self._close()
        self._remove()

    def _close(self) -> None:
        if self._sync is not None:
            wait([self._sync])  # no thread is to be at a descriptor that is another file's by then
        os.close(self._descriptor)

    def _remove(self) -> None:
        with contextlib.suppress(OSError):  # what can't be removed, the next writer does
            os.unlink(self.partial, dir_fd=self.folder.descriptor)


class Together:
    """Files that become durable together, for a ``with`` block: written in turn, and synced side by side.

    Most of a large file's sync is waiting for the disk, which the next file need not. Each file is synced before it
    gets its name, as by `Folder.replace`; after the block all have theirs, and their folders are synced. A block
    that raises leaves those that were renamed by then. Each file that waits is a descriptor, of which a process may
    have few.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="embstore-sync")
        self._may_start_threads = may_start_threads()
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most = _MOST_WAITING if allowed == resource.RLIM_INFINITY else max(1, min(_MOST_WAITING, allowed // 8))
        self._waiting: deque[_Written] = deque()
        self._folders: dict[int, Folder] = {}

    def replace(
        self, folder: Folder, name: str, parts: Sequence[Buffer], *, trailer: tuple[int, bytes] | None = None
    ) -> None:
        """Write a file; see `Folder.replace`. It may not be there before `land`, or the block's end."""
        if len(self._waiting) == self._most:
            self._waiting.popleft().land()
        taken = {file.partial for file in self._waiting if file.folder is folder}
        partial = next(name for name in _partial_names() if name not in taken)
        file = _Written(folder, partial, name, parts, trailer)
        self._waiting.append(file)
        self._folders[folder.descriptor] = folder
        if self._may_start_threads:
            file.sync_in(self._pool)

    def land(self, folder: Folder) -> None:
        """Give the files in a folder their names, once they are synced."""
        while any(file.folder is folder for file in self._waiting):
            self._waiting.popleft().land()

    def __enter__(self) -> Together:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                while self._waiting:
                    self._waiting.popleft().land()
                for folder in self._folders.values():
                    folder.sync()
        finally:
            for file in self._waiting:
                file.drop()
            self._pool.shutdown()


def _partial_names() -> Iterator[str]:
    yield PARTIAL
    yield from (f"{PARTIAL}-{number}" for number in itertools.count(1))


def _write_all(descriptor: int, data: Buffer, position: int) -> int:
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(descriptor, view, position)
        position += written
        view = view[written:]
    return position


def read_exactly(descriptor: int, nbytes: int, position: int) -> bytes:
    """Read `nbytes` at `position`; fewer, where the file is shorter."""
    pieces = []
    while nbytes > 0 and (piece := os.pread(descriptor, nbytes, position)):
        pieces.append(piece)
        position += len(piece)
        nbytes -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def read_into(descriptor: int, buffers: Sequence[memoryview], position: int) -> int:
    """Fill the buffers in turn from `position`; returns the bytes read, fewer at the file's end."""
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


def make_parents(path: Path) -> None:
    """Make the folders that lead to `path`, where they are not there."""
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)


def append_line(path: Path, line: str) -> None:
    """Add a line to a file beside the stores, which is made if it is not there; not synced, nothing depends on it."""
    with _explained(path):
        path.parent.mkdir(exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file beside `path`, which takes its place once the block is through: synced, then renamed.

    If the block raises, the temporary file is removed, and what is at `path` stays. A killed process leaves it behind,
    under a hidden name of its own: there is no lock here, and several may write at once.
    """
    partial = path.with_name(f".{path.name[:128]}.{secrets.token_hex(4)}{PARTIAL}")
    with _explained(path):
        try:
            _step("create", partial)
            yield partial
            descriptor = os.open(partial, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _step("fsync", partial)
                _sync(descriptor)
            finally:
                os.close(descriptor)
            _step("rename", path)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    sync_path(path.parent)


def sibling(path: Path) -> Path:
    """Name the one temporary folder beside a store, in which it is built or compacted."""
    return path.with_name(f".{path.name}{PARTIAL}")


def remove_tree(path: Path, *, last_first: str | None = None) -> None:
    """Remove a folder beside a store, the file `last_first` in it before the rest."""
    _step("rmtree", path)
    if last_first is not None:
        (path / last_first).unlink(missing_ok=True)
    shutil.rmtree(path)
    sync_path(path.parent)


def sync_path(path: Path) -> None:
    """Sync the folder at `path`."""
    folder = Folder.open(path)
    folder.sync()


def _renameat2(source: Path, target: Path, linux_flag: int, macos_flag: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    old, new = os.fsencode(source), os.fsencode(target)
    if sys.platform == "darwin":  # pragma: no cover
        failed = library.renamex_np(old, new, ctypes.c_uint(macos_flag))
    else:
        at_cwd = -100
        failed = library.renameat2(at_cwd, old, at_cwd, new, ctypes.c_uint(linux_flag))
    if failed:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(source), None, str(target))


def move_into_place(source: Path, target: Path) -> None:
    """Rename a finished folder to its place, durably, unless something is there.

    Raises
    ------
    StoreExistsError
        Something is at `target`; nothing was changed.
    """
    with _explained(target):
        _step("move", source, str(target))
        try:
            _renameat2(source, target, _RENAME_NOREPLACE, _RENAME_EXCL)
        except OSError as error:
            if error.errno == errno.EEXIST:
                raise StoreExistsError(target) from error
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
                raise
            if os.path.lexists(target):  # no such flag here: the lock keeps other writers away
                raise StoreExistsError(target) from error
            os.rename(source, target)
        sync_path(target.parent)


def exchange(source: Path, target: Path) -> None:
    """Exchange two folders in one step; durable once their parent was synced."""
    with _explained(target):
        _step("exchange", source, str(target))
        _renameat2(source, target, _RENAME_EXCHANGE, _RENAME_SWAP)


def filesystem_type(path: Path) -> str:
    """Name the type of file system that holds `path`: "block" on a disk, else as the mount table does ("" without)."""
    try:
        device = os.stat(path).st_dev
        if os.major(device):
            return "block"  # a disk of this machine: network file systems have no device, and so major number 0
        table = Path("/proc/self/mountinfo").read_text()
    except OSError:
        return ""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in table.splitlines():
        head, _, rest = line.partition(" - ")
        if head.split()[2] == wanted:
            return rest.split()[0]
    return ""


def on_network(path: Path) -> str:
    """Return the file system's type if it is a network or FUSE one, else ""."""
    kind = filesystem_type(path)
    return kind if kind in _NETWORK or kind.startswith("fuse") else ""


def refuse_network(path: Path) -> None:
    """Raise `NetworkFileSystemError` where locks and syncs can't be relied on."""
    if kind := on_network(path):
        raise NetworkFileSystemError(path, kind)


@contextlib.contextmanager
def lock(path: Path, *, timeout: float) -> Iterator[None]:
    """Hold the writers' lock of the store at `path`; it lies beside the store, and stays there.

    Raises
    ------
    StoreLockedError
        It was not free within `timeout` seconds; names the holder.
    ReadOnlyError
        The folder can't be written to.
    """
    import filelock  # 30 ms that readers need not spend

    place = path.with_name(path.name + ".lock")
    # No soft lock where flock is missing: it outlives a killed process.
    held = filelock.FileLock(place, timeout=timeout, poll_interval=0.002, thread_local=False, fallback_to_soft=False)
    with _explained(place):
        try:
            held.acquire()
        except filelock.Timeout as error:
            raise StoreLockedError(path, holder=_holder(place), timeout=timeout) from error
    try:
        _sign(place)
        yield
    finally:
        held.release()


class Held:
    """A lock that says that its process is at work: given up by `release`, and by the kernel when the process ends."""

    def __init__(self, place: Path) -> None:
        import filelock

        self.place = place
        self._lock = filelock.FileLock(place, thread_local=False, fallback_to_soft=False)

    def acquire(self) -> bool:
        """Take the lock if it is free; tell whether it is held now."""
        import filelock

        try:
            with _explained(self.place):
                self._lock.acquire(timeout=0)
        except filelock.Timeout:
            return False
        return True

    def release(self) -> None:
        """Give the lock up, and remove its file."""
        self.place.unlink(missing_ok=True)  # while it is held: a process that finds the name finds it free or gone
        self._lock.release()


def _sign(place: Path) -> None:
    """Leave word of who holds the lock, for the error that another writer may get."""
    text = f"process {os.getpid()} on {socket.gethostname()}\n"
    try:
        if place.read_text() != text:
            place.write_text(text)
    except OSError as error:
        logger.debug("%s: could not be signed: %s", place, error)


def _holder(place: Path) -> str:
    try:
        return place.read_text().strip()
    except OSError:
        return ""

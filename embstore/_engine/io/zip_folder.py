"""A folder in a zip archive at a URL, which is fetched whole when a file of it is read."""

from __future__ import annotations

import io
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any, Final, TypeVar

from embstore._engine.io.folder import ReadableFolder, Signature, check_name
from embstore._engine.io.threads import ThreadLock
from embstore.errors import CorruptStoreError

T = TypeVar("T")

_KEPT_NBYTES: Final = 256 * 2**20
_DATE: Final = (1980, 1, 1, 0, 0, 0)
_BROKEN: Final = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError)


class Archives:
    """The archives in a folder at a URL. The last ones are kept in memory, up to 256 MiB.

    Parameters
    ----------
    folder : ReadableFolder
    most : int
        Largest size of an archive in bytes.
    dropped : callable
        Called with the name of an archive that is no longer kept: columns may hold its bytes, too.
    """

    def __init__(self, folder: ReadableFolder, *, most: int, dropped: Callable[[str], None]) -> None:
        self.folder = folder
        self._most = most
        self._dropped = dropped
        self._kept: OrderedDict[str, Mapping[str, bytes]] = OrderedDict()
        self._lock = ThreadLock()

    def load(self, names: Iterable[str]) -> None:
        """Fetch those of some archives that are not kept, several at once."""
        missing = [name for name in names if name not in self._kept]
        for name, files in zip(missing, self.folder.contents(missing, _files, most=self._most), strict=True):
            self.keep(name, files)

    def files(self, name: str) -> Mapping[str, bytes]:
        """Return the files of an archive by their paths in it."""
        with self._lock():
            if (files := self._kept.get(name)) is not None:
                self._kept.move_to_end(name)
                return files
        (files,) = self.folder.contents([name], _files, most=self._most)
        self.keep(name, files)
        return files

    def keep(self, name: str, files: Mapping[str, bytes]) -> None:
        """Keep the files of an archive, also of one that was just written."""
        with self._lock():
            self._kept[name] = files
            total = sum(len(data) for kept in self._kept.values() for data in kept.values())
            while total > _KEPT_NBYTES and len(self._kept) > 1:
                oldest, dropped = self._kept.popitem(last=False)
                total -= sum(map(len, dropped.values()))
                self._dropped(oldest)


def _files(path: PurePath, data: bytes | memoryview) -> dict[str, bytes]:
    """Return the files of an archive. Their checksums are checked."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    except _BROKEN as error:
        raise CorruptStoreError(path, f"it is not a whole zip archive: {error}") from error


def zipped(files: Mapping[str, bytes]) -> bytes:
    """Return an uncompressed zip archive of files."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, _DATE), data)
    return made.getvalue()


class ZipFolder:
    """A folder in an archive."""

    __slots__ = ("_archives", "_name", "_prefix", "path")

    def __init__(self, archives: Archives, name: str, prefix: str = "") -> None:
        self._archives = archives
        self._name = name
        self._prefix = prefix
        self.path = archives.folder.path / name / prefix

    def child(self, name: str) -> ZipFolder:
        """Return the folder `name` in this one. It need not exist."""
        check_name(self.path, name)
        return ZipFolder(self._archives, self._name, f"{self._prefix}{name}/")

    @property
    def origin(self) -> tuple[str, dict[str, Any] | None]:
        """The URL of the folder with the archive, and its options without credentials."""
        return self._archives.folder.origin

    @property
    def last_read(self) -> object:
        """A constant: an archive never changes."""
        return None

    def replaced(self) -> bool:
        """Return False: an archive never changes."""
        return False

    def signature(self, name: str) -> Signature:
        """Return the size of a file. An archive never changes."""
        return 0, len(self.read(name, most=2**63)), 0

    def read(self, name: str, *, most: int) -> bytes:
        """Read the whole file `name`, which may have at most `most` bytes."""
        check_name(self.path, name)
        data = self._archives.files(self._name).get(f"{self._prefix}{name}")
        if data is None:
            raise FileNotFoundError(2, "No such file", str(self.path / name))
        if len(data) > most:
            raise CorruptStoreError(self.path / name, f"expected at most {most:,} bytes, found {len(data):,}")
        return data

    def read_marked(self, name: str, parse: Callable[[PurePath, bytes], T], *, most: int) -> tuple[Signature, T]:
        """Read a whole file. Return its `signature`, and its content as `parse` returns it."""
        return self.signature(name), parse(self.path / name, self.read(name, most=most))

    def contents(
        self,
        names: Iterable[str],
        parse: Callable[[PurePath, bytes | memoryview], T],
        *,
        most: int,
        held: int | None = None,  # the archive is in memory
    ) -> Iterator[T]:
        """Read whole files in turn, and yield the content of each as `parse` returns it."""
        for name in names:
            yield parse(self.path / name, self.read(name, most=most))

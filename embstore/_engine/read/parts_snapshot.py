"""A commit of a store of parts, read as one store. Its parts lie in a bucket, or on this machine in a mirror of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final, NoReturn

import numpy as np

from embstore._engine.chunks.chunk_file import check_tail
from embstore._engine.chunks.record_file import as_corruption, parse_document, parse_record, read_head
from embstore._engine.format.parts import DEAD, PARTS, Listing, Part
from embstore._engine.format.record import STRING, Record, offsets_name
from embstore._engine.format.values import crc32c
from embstore._engine.format.zarr_layout import MAX_METADATA_BYTES, METADATA_NAME
from embstore._engine.io.folder import Folder, ReadableFolder, Signature
from embstore._engine.io.zip_folder import Archives, ZipFolder
from embstore._engine.read.column import Array, Check, NumericColumn, Rows, check_rows
from embstore._engine.read.history import Position
from embstore._engine.read.joined_column import JoinedColumn, JoinedStrings, Piece
from embstore._engine.read.mapped_column import MappedColumn, State
from embstore._engine.read.open_column import AnyColumn, Column, open_column
from embstore._engine.read.open_column import Mapping as MappingPolicy
from embstore._engine.read.snapshot import Snapshot
from embstore._engine.read.string_column import StringColumn
from embstore.errors import CorruptStoreError, NotAStoreError, StoreChangedError, StoreReplacedError

MOST_ZIPPED: Final = 64 * 2**20
"""Most bytes of a part that is one object: it is fetched whole."""
_MOST_ARCHIVE: Final = 2 * MOST_ZIPPED
_LOADED_NBYTES: Final = 128 * 2**20
"""Most bytes of archives that are fetched before their rows are read: half of those that are kept."""


class Parts:
    """The opened parts of a store: their records and columns, which never change.

    Parameters
    ----------
    folder : ReadableFolder
        Of the store.
    mapping, check
    """

    def __init__(self, folder: ReadableFolder, *, mapping: MappingPolicy, check: Check) -> None:
        self._folder = folder.child(PARTS) if not isinstance(folder, Folder) else None
        self._root = folder
        self._mapping = mapping
        self._check = check
        self._archives = (
            Archives(self._folder, most=_MOST_ARCHIVE, dropped=self._forget_columns)
            if self._folder is not None
            else None
        )
        self._records: dict[str, Record] = {}
        self._columns: dict[tuple[str, str], Column] = {}
        self._class_names: dict[str, list[str]] = {}
        self._dead: dict[str, Rows] = {}

    def folder_of(self, part: Part) -> ReadableFolder:
        """Return the folder of a part. A mirror has unpacked it."""
        if self._archives is None or self._folder is None:
            return self._root.child(PARTS).child(folder_name(part))
        return ZipFolder(self._archives, part.name) if part.zipped else self._folder.child(part.name)

    def loaded(self, parts: Iterable[Part]) -> Iterator[Part]:
        """Yield parts. Archives among them are fetched before, several at once, but not more than are kept."""
        group: list[Part] = []
        for part in parts:
            if sum(one.nbytes for one in group) + part.nbytes > _LOADED_NBYTES:
                yield from self._load(group)
                group = []
            group.append(part)
        yield from self._load(group)

    def _load(self, group: list[Part]) -> list[Part]:
        if self._archives is not None and len(group) > 1:
            self._archives.load(part.name for part in group if part.zipped)
        return group

    def _forget_columns(self, name: str) -> None:
        for key in [key for key in list(self._columns) if key[0] == name]:
            self._columns.pop(key, None)

    def record(self, part: Part, empty: Record) -> Record:
        """Return the record of a part, after a check that it belongs to the store.

        Raises
        ------
        FileNotFoundError, CorruptStoreError
        """
        if (known := self._records.get(part.name)) is not None:
            return known
        folder = self.folder_of(part)
        path = folder.path / METADATA_NAME
        data = folder.read(METADATA_NAME, most=MAX_METADATA_BYTES)
        if digest_of(data) != part.digest:
            raise CorruptStoreError(path, "it is not of the part that the store lists")
        found = parse_record(path, parse_document(path, data)["attributes"]["embstore"])
        tokens = {name: found.arrays[name].length for name in found.ragged}
        expected: tuple[Any, ...] = (part.rows, dict(part.tokens), 0, empty.fingerprint, empty.fields, empty.columns)
        if (found.rows, tokens, found.dead, found.fingerprint, found.fields, found.columns) != expected:
            raise CorruptStoreError(path, "expected the rows, fields, columns and config that the store lists")
        self._records[part.name] = found
        return found

    def column(self, part: Part, empty: Record, name: str) -> Column:
        """Return a column of a part."""
        column = self._columns.get((part.name, name))
        if column is None:
            array, folder = self.record(part, empty).arrays[name], self.folder_of(part).child(name)
            if isinstance(folder, Folder):
                check_tail(folder, array)
            column = open_column(folder, array, mapping=self._mapping, check=self._check)
            column = self._columns.setdefault((part.name, name), column)
        return column

    def dead_rows(self, part: Part) -> Rows:
        """Return the numbers of the deleted rows of a part, ascending.

        Raises
        ------
        FileNotFoundError, CorruptStoreError
        """
        if (dead := part.dead) is None:
            return np.empty(0, np.int64)
        if (known := self._dead.get(dead.name)) is None:
            folder = self._root.child(DEAD)
            data = folder.read(dead.name, most=8 * dead.rows)
            path = folder.path / dead.name
            if len(data) != 8 * dead.rows or crc32c(data) != dead.crc32c:
                raise CorruptStoreError(path, "its size or its checksum does not match")
            known = np.frombuffer(data, "<i8").astype(np.int64)
            if known[0] < 0 or known[-1] >= part.rows or (np.diff(known) <= 0).any():
                raise CorruptStoreError(path, "expected distinct numbers of the part's rows, ascending")
            self._dead[dead.name] = known
        return known

    def class_names(self, parts: Sequence[Part], empty: Record) -> list[list[str]]:
        """Return the classes of each part, by their codes in it."""
        for part in self.loaded(part for part in parts if part.name not in self._class_names):
            column = self.column(part, empty, "class_names")
            assert isinstance(column, StringColumn)
            self._class_names[part.name] = [name for chunk in column.chunks() for name in chunk]
        return [self._class_names[part.name] for part in parts]

    def written(self, part: Part, files: Mapping[str, bytes]) -> None:
        """Keep the files of a part that was just written, so that it is not fetched."""
        if self._archives is not None and part.zipped:
            self._archives.keep(part.name, files)

    def settle(self) -> None:
        """Note that mapped columns no longer depend on their files, which never change."""
        for column in list(self._columns.values()):
            if isinstance(column, MappedColumn) and column.state is State.MAPPED:
                column.settle()

    def only(self, parts: Sequence[Part]) -> None:
        """Forget all parts but these."""
        names = {part.name for part in parts}
        self._records = {name: record for name, record in list(self._records.items()) if name in names}
        self._columns = {key: column for key, column in list(self._columns.items()) if key[0] in names}
        self._class_names = {name: found for name, found in list(self._class_names.items()) if name in names}
        lists = {part.dead.name for part in parts if part.dead}
        self._dead = {name: rows for name, rows in list(self._dead.items()) if name in lists}


def folder_name(part: Part) -> str:
    """Return the name of the folder of a part in a mirror."""
    return part.name.removesuffix(".zip")


def digest_of(data: bytes) -> str:
    """Return the digest of the ``zarr.json`` of a part."""
    return blake2b(data, digest_size=16).hexdigest()


class PartsSnapshot(Snapshot):
    """One commit of a store of parts.

    Attributes
    ----------
    listing : Listing
    """

    def __init__(
        self,
        folder: ReadableFolder,
        listing: Listing,
        signature: Signature,
        *,
        mapping: MappingPolicy,
        check: Check,
        parts: Parts | None = None,
    ) -> None:
        super().__init__(folder, listing.as_one(), signature, mapping=mapping, check=check)
        self.listing = listing
        self.parts = parts or Parts(folder, mapping=mapping, check=check)
        record = self.record
        self.position = Position(record.generation, record.rows, record.dead, record.epoch, b"", b"")
        self._codes: list[np.ndarray[Any, Any]] | None = None

    def check_opened(self) -> None:
        """Check all rows, if `check` is "all". Otherwise each part is checked when it is read.

        Raises
        ------
        NotAStoreError
            The folder is a mirror whose parts were not all fetched.
        """
        if isinstance(self.folder, Folder):
            names = {folder_name(part) for part in self.listing.parts}
            if missing := names.difference(self.folder.child(PARTS).names()):
                reason = f"{len(missing):,} of {len(names):,} parts of the mirror are missing; call embstore.pull again"
                raise NotAStoreError(self.folder.path, reason)
        if self.check == "all":
            for name in self.record.arrays.keys() - {"class_names", "dead_rows"}:
                column = self.column(name)
                for _ in column.chunks() if isinstance(column, StringColumn) else [self.span(name)]:
                    pass

    def moved(self, listing: Listing, signature: Signature) -> PartsSnapshot:
        """Return the snapshot of another commit of the same store. Opened parts stay open."""
        self.parts.only(listing.parts)
        return PartsSnapshot(self.folder, listing, signature, mapping=self.mapping, check=self.check, parts=self.parts)

    def checked(self) -> PartsSnapshot:
        """Return this commit with a check of each chunk that is read."""
        return PartsSnapshot(self.folder, self.listing, self._signature, mapping=self.mapping, check="touched")

    def newest(self) -> PartsSnapshot:
        """Return the newest commit at the place, which may be this one.

        Raises
        ------
        StoreReplacedError, CorruptStoreError
        """
        try:
            listing, signature = read_head(self.folder)
        except NotAStoreError as error:
            raise StoreReplacedError(self.folder.path) from error
        if not isinstance(listing, Listing) or listing.empty.fingerprint != self.record.fingerprint:
            raise StoreReplacedError(self.folder.path, "a store of another config took its place")
        if listing.commit_id == self.record.commit_id:
            return self
        if listing.seq < self.listing.seq:
            raise StoreReplacedError(self.folder.path, "an earlier copy of it was put back")
        return self.moved(listing, signature)

    def ensure_current(self) -> None:
        """Do nothing: parts never change, and a part that an erase deleted can't be read."""

    def _recheck_record(self) -> None:
        pass

    def follows(self, position: Position) -> bool:
        """Return whether this is the commit at that position, or a later one."""
        mine = self.position
        return mine.generation == position[0] and all(map(int.__ge__, mine[1:4], position[1:4]))

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Guard reads: the block reads rows of this commit, or it raises."""
        try:
            yield
        except (FileNotFoundError, CorruptStoreError) as error:
            self._explain(error)
        if isinstance(self.folder, Folder):
            self.parts.settle()

    def _explain(self, error: Exception) -> NoReturn:
        """Raise StoreChangedError if a later commit no longer lists all parts, else CorruptStoreError."""
        try:
            listing, _ = read_head(self.folder)
        except NotAStoreError:
            raise StoreReplacedError(self.folder.path) from error
        now = listing.objects if isinstance(listing, Listing) else set()
        if self.listing.objects - now:
            raise StoreChangedError(
                self.folder.path,
                "its parts were compacted or erased since it was opened; refresh() it",
                expected=self.record.commit_id,
                found=listing.commit_id,
            ) from error
        raise as_corruption(error) from error

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Do nothing: there is no look at the record to save."""
        yield

    def column(self, name: str) -> AnyColumn:
        """Return the column of the array `name` over all parts."""
        column = self._columns.get(name)
        if column is None:
            column = self._columns.setdefault(name, self._joined(name))
        return column

    def _joined(self, name: str) -> AnyColumn:
        array, parts = self.record.arrays[name], self.listing.parts
        ragged, offsets = self.record.ragged, {offsets_name(field): field for field in self.record.ragged}
        if len(parts) == 1 and isinstance(self.folder, Folder) and name != "class_names":
            with self.reading():
                return self.parts.column(parts[0], self.listing.empty, name)  # mapped, as that of any store
        pieces = []
        tokens = dict.fromkeys(ragged, 0)
        for place, part in enumerate(parts):
            if name in ragged:
                pieces.append(Piece(part.tokens[name]))
            elif name in offsets:
                field = offsets[name]
                rows = part.rows + (place == len(parts) - 1)
                pieces.append(Piece(rows, _Shift(self._path(part, name), tokens[field], part.tokens[field])))
                tokens[field] += part.tokens[field]
            elif name == "class_code":
                pieces.append(Piece(part.rows, _Recode(self, place)))
            else:
                pieces.append(Piece(part.rows))
        if not parts and name in offsets:
            return _Zeros(self.folder, array, self.check)

        def open_columns(places: Sequence[int]) -> Iterator[AnyColumn]:
            for part in self.parts.loaded(parts[place] for place in places):
                yield self.parts.column(part, self.listing.empty, name)

        if array.dtype == STRING:
            return JoinedStrings(array, pieces, open_columns)
        return JoinedColumn(self.folder, array, pieces, open_columns, self.check)

    def _path(self, part: Part, name: str) -> Any:
        return self.folder.path / PARTS / part.name / name

    def _read_dead_rows(self) -> Rows:
        starts = np.cumsum([0, *(part.rows for part in self.listing.parts)])
        with self.reading():
            found = [
                self.parts.dead_rows(part) + start for part, start in zip(self.listing.parts, starts[:-1], strict=True)
            ]
        return np.concatenate([np.empty(0, np.int64), *found])

    def _read_class_names(self) -> list[str]:
        codes: dict[str, int] = {}
        maps: list[np.ndarray[Any, Any]] = []
        with self.reading():
            for names in self.parts.class_names(self.listing.parts, self.listing.empty):
                maps.append(np.array([codes.setdefault(name, len(codes)) for name in names], dtype=np.int32))
        self._codes = maps
        return list(codes)

    def codes_of(self, place: int) -> np.ndarray[Any, Any]:
        """Return the code of each class of a part among the classes of the store."""
        if self._codes is None:
            _ = self.class_names
        assert self._codes is not None
        return self._codes[place]


class _Zeros(NumericColumn):
    """The offsets of a ragged field without rows: a 0."""

    def take(self, rows: Rows) -> Array:
        check_rows(rows, self.array.length)
        return np.zeros(len(rows), self.dtype)

    def copy(self, start: int, stop: int) -> Array:
        return np.zeros(stop - start, self.dtype)


class _Shift:
    """Moves the offsets of a part behind the tokens of the parts before it."""

    def __init__(self, path: Any, before: int, tokens: int) -> None:
        self._path = path
        self._before = before
        self._tokens = tokens

    def __call__(self, offsets: Array) -> Array:
        if len(offsets) and not 0 <= offsets.min() <= offsets.max() <= self._tokens:
            raise CorruptStoreError(self._path, f"expected offsets from 0 to {self._tokens}")
        return offsets + self._before


class _Recode:
    """Turns the class codes of a part into those of the store."""

    def __init__(self, snapshot: PartsSnapshot, place: int) -> None:
        self._snapshot = snapshot
        self._place = place

    def __call__(self, codes: Array) -> Array:
        known = self._snapshot.codes_of(self._place)
        if len(codes) and not 0 <= codes.min() <= codes.max() < len(known):
            path = self._snapshot.folder.path / PARTS / self._snapshot.listing.parts[self._place].name / "class_code"
            raise CorruptStoreError(path, "expected codes of the stored class names")
        return known[codes]

"""The store: a thin front over a snapshot to read from, and commits to write with."""

from __future__ import annotations

import contextlib
import html
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from embstore import fsio
from embstore.changes import (
    AppendResult,
    IfExists,
    Plan,
    new_record,
    plan_append,
    plan_column,
    plan_delete,
    plan_field,
)
from embstore.commit import Committed, Values, commit, create
from embstore.compaction import compact
from embstore.config import Config
from embstore.erasing import erase_dead
from embstore.errors import (
    ConfigMismatchError,
    DeadRowsError,
    DtypeError,
    MissingKeysError,
    ReadOnlyError,
    StoreChangedError,
    StoreExistsError,
    StoreReplacedError,
    UnknownFieldError,
)
from embstore.index import KeyIndex, wants_run, write_run
from embstore.ingest import Casting, read_keys, widen_bfloat16
from embstore.keys import Key, hash_keys
from embstore.layout import FIELD_CHUNK_BYTES
from embstore.reader import Check, Rows
from embstore.reader import Mapping as MappingPolicy
from embstore.recovery import recover
from embstore.schema import BFLOAT16, FieldSpec
from embstore.snapshot import Snapshot, read_record
from embstore.view import Condition, View, filter_rows
from embstore.writer import RowWriter

if TYPE_CHECKING:
    import torch

__all__ = ["EmbeddingStore", "EraseReceipt", "open"]

logger = logging.getLogger("embstore")

Mode = Literal["r", "r+", "a", "w-", "x"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EraseReceipt:
    """What an erase did, and what it can't reach.

    Attributes
    ----------
    path : Path
    key_hashes : tuple of str
        BLAKE2b-128 of the keys, 32 hexadecimal digits each; the keys themselves are gone.
    rows : tuple of int
    files_rewritten : int
    not_reached : tuple of str
    """

    path: Path
    key_hashes: tuple[str, ...]
    rows: tuple[int, ...]
    files_rewritten: int
    not_reached: tuple[str, ...] = (
        "arrays and processes that map the old files, until they are closed or refreshed",
        "file system snapshots and the freed blocks of the disk",
        "backups and other copies of the store",
        "the names of classes",
    )


class EmbeddingStore:
    """Embeddings of one config, a row a sample, found by key. Made by `embstore.open` or `Cache.open`.

    A store keeps the commit that it was opened at, or that it wrote last; `refresh` moves on.
    """

    def __init__(
        self, snapshot: Snapshot, *, writable: bool, lock_timeout: float = 60.0, network: str = "refuse"
    ) -> None:
        self._snapshot: Snapshot | None = snapshot
        self._path = snapshot.folder.path
        self._writable = writable
        self._lock_timeout = lock_timeout
        self._network = network
        self._index: KeyIndex | None = None
        self._config: Config | None = None
        self._recovered = ""  # the commit up to which nothing can be left to mend
        self._mutex = threading.RLock()

    # -- what it is ---------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """Where the store lies, resolved."""
        return self._path

    @property
    def snapshot(self) -> Snapshot:
        """The commit that is read from."""
        if self._snapshot is None:
            raise ValueError(f"the store {self._path} is closed")
        return self._snapshot

    @property
    def config(self) -> Config:
        """All that the values depend on."""
        if self._config is None:
            self._config = Config(self.snapshot.record.config)
        return self._config

    @property
    def fields(self) -> dict[str, FieldSpec]:
        """The embedding columns, by name."""
        return dict(self.snapshot.record.fields)

    @property
    def columns(self) -> dict[str, str]:
        """The other columns' dtypes, by name."""
        return {name: spec.dtype for name, spec in self.snapshot.record.columns.items()}

    @property
    def classes(self) -> list[str]:
        """All classes, in the order in which they first came."""
        return list(self.snapshot.class_names)

    @property
    def rows(self) -> Rows:
        """Numbers of the live rows, ascending: ``(len(store),) int64``."""
        return self.snapshot.live_rows.copy()

    @property
    def nbytes(self) -> int:
        """Bytes of all rows of all fields."""
        record = self.snapshot.record
        return sum(record.arrays[name].row_nbytes * record.rows for name in record.fields)

    @property
    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return self._writable

    def __len__(self) -> int:
        record = self.snapshot.record
        return record.rows - record.dead

    def field_name(self, field: str | None = None) -> str:
        """Return the field's name; the only one's, for None.

        Raises
        ------
        UnknownFieldError
        """
        names = self.snapshot.record.fields
        if field is None and len(names) == 1:
            return next(iter(names))
        if field not in names:
            raise UnknownFieldError(field, names, path=self._path)
        return field

    # -- rows by key --------------------------------------------------------------------------

    @property
    def _keys(self) -> KeyIndex:
        snapshot, index = self.snapshot, self._index
        if index is None or index.snapshot is not snapshot:
            same = index is not None and index.snapshot.record.generation == snapshot.record.generation
            index = self._index = KeyIndex(snapshot, index if same else None)
        return index

    def find(self, keys: Sequence[str | Key]) -> Rows:
        """Return the row of each key, -1 where it is not stored: ``(len(keys),) int64``."""
        return self._keys.find(hash_keys(keys))

    def rows_of(self, keys: Sequence[str | Key]) -> Rows:
        """Return the row of each key, in their order: ``(len(keys),) int64``.

        Raises
        ------
        MissingKeysError
            Lists all that are not stored.
        KeyFormatError
            One of those is not a key.
        """
        rows = self.find(keys)
        if len(rows) and rows.min() < 0:
            missing = [str(keys[i]) for i in np.flatnonzero(rows < 0).tolist()]
            for key in missing:
                Key.parse(key)
            raise MissingKeysError(missing, path=self._path)
        return rows

    def missing(self, keys: Iterable[str | Key]) -> list[str]:
        """Return the keys that are not stored, in their order."""
        texts = [str(Key.parse(key)) for key in keys]
        rows = self.find(texts)
        return [texts[i] for i in np.flatnonzero(rows < 0).tolist()]

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str | Key) and bool(self.find([key])[0] >= 0)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys of the live rows, in the order of rows."""
        snapshot = self.snapshot
        step = 65_536
        rows = snapshot.live_rows
        for start in range(0, len(rows), step):
            yield from snapshot.keys_of(rows[start : start + step])

    def __getitem__(self, key: str | Key | Sequence[str | Key]) -> np.ndarray[Any, Any]:
        """Return the only field's row of a key, read-only; or fresh rows of several keys."""
        if isinstance(key, str | Key):
            return self._row(int(self.rows_of([key])[0]), self.field_name())
        if isinstance(key, list | tuple | np.ndarray) and (not len(key) or isinstance(key[0], str | Key)):
            return self.fetch(key)
        raise TypeError(f"a store is indexed by a key or a list of keys, found {key!r}; by row, use take()")

    def _row(self, row: int, field: str) -> np.ndarray[Any, Any]:
        return self._widened(field, self.snapshot.span(field, row, row + 1)[0])

    def _widened(self, field: str, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        bits = self.snapshot.record.fields[field].dtype == BFLOAT16
        return widen_bfloat16(values) if bits else values

    def fetch(self, keys: Sequence[str | Key], field: str | None = None) -> np.ndarray[Any, Any]:
        """Copy the rows of `keys`, in their order and with their repeats: ``(len(keys), *shape)``.

        Raises
        ------
        MissingKeysError, UnknownFieldError
        """
        return self.take(self.rows_of(keys), field)

    def take(self, rows: Any, field: str | None = None) -> np.ndarray[Any, Any]:
        """Copy rows by number: ``(len(rows), *shape)``, writable; bfloat16 comes as float32.

        Raises
        ------
        IndexError
            A number that is negative or not below the number of rows.
        """
        name = self.field_name(field)
        rows = np.asarray(rows, dtype=np.int64) if len(rows) else np.empty(0, np.int64)
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.snapshot.record.rows:
            raise IndexError(f"rows go from 0 to {self.snapshot.record.rows - 1}, found {rows.min()} to {rows.max()}")
        return self._widened(name, self.snapshot.take(name, rows))

    # -- whole columns ------------------------------------------------------------------------

    def _whole(self, field: str | None, dead: Literal["refuse", "include"]) -> str:
        name = self.field_name(field)
        if dead == "refuse" and self.snapshot.record.dead:
            raise DeadRowsError(name, path=self._path, dead=self.snapshot.record.dead)
        return name

    def array(
        self, field: str | None = None, *, dead: Literal["refuse", "include"] = "refuse"
    ) -> np.ndarray[Any, Any]:
        """Return a whole column without a copy: ``(rows, *shape)``, read-only.

        It stays valid after `close`. Where the store can't be mapped it is read into RAM.

        Raises
        ------
        DeadRowsError
            There are deleted rows, and `dead` is not ``"include"``.
        DtypeError
            It is bfloat16, which NumPy does not have.
        """
        name = self._whole(field, dead)
        if self.snapshot.record.fields[name].dtype == BFLOAT16:
            raise DtypeError(name, expected="a dtype of NumPy's", found=BFLOAT16, hint="use tensor() or select().to_numpy()")
        return self.snapshot.span(name)

    def tensor(
        self, field: str | None = None, *, dead: Literal["refuse", "include"] = "refuse"
    ) -> torch.Tensor:
        """Return a whole column as a tensor without a copy: ``(rows, *shape)``.

        torch has no read-only tensors: this one may be written to, and keeps what is written to itself
        (pages are copied as they are written); the files never change.
        """
        from embstore.torch import as_tensor

        name = self._whole(field, dead)
        return as_tensor(self.snapshot.private(name), self.snapshot.record.fields[name])

    # -- selections ---------------------------------------------------------------------------

    def select(
        self,
        *,
        keys: Sequence[str | Key] | None = None,
        rows: Any = None,
        classes: Sequence[str] | str | None = None,
        where: Mapping[str, Condition] | None = None,
    ) -> View:
        """Return a lazy selection of rows; all live ones, if nothing is asked for.

        Parameters
        ----------
        keys, rows : sequence, optional
            These, in this order and with repeats; one of the two.
        classes : str or sequence of str, optional
            Only these classes.
        where : mapping, optional
            A condition for each column named: a value it equals, a list it is in, or a function that
            takes the values and returns a mask.

        Raises
        ------
        MissingKeysError, UnknownClassError, UnknownColumnError, IndexError
        """
        snapshot = self.snapshot
        if keys is not None and rows is not None:
            raise TypeError("expected keys or rows, found both")
        if keys is not None:
            chosen = self.rows_of(keys)
        elif rows is not None:
            chosen = np.asarray(rows, dtype=np.int64) if len(rows) else np.empty(0, np.int64)
            if len(chosen) and not 0 <= chosen.min() <= chosen.max() < snapshot.record.rows:
                raise IndexError(f"rows go from 0 to {snapshot.record.rows - 1}")
            if snapshot.is_dead(chosen).any():
                raise IndexError("some of these rows were deleted; live ones are in store.rows")
        else:
            chosen = snapshot.live_rows
        return View(self, filter_rows(snapshot, chosen, classes, where))

    # -- writing ------------------------------------------------------------------------------

    def append(
        self,
        keys: Iterable[str | Key],
        values: Any,
        *,
        columns: Mapping[str, Any] | None = None,
        if_exists: IfExists = "error",
        casting: Casting = "no",
    ) -> AppendResult:
        """Add rows, durably and in one commit: all of them or none.

        The first rows of a store that was made without fields decide its fields and columns.

        Parameters
        ----------
        keys : iterable of str or Key
        values : array_like, (n, *shape), or mapping of field names to these
            NumPy arrays, or torch tensors of any device.
        columns : mapping, optional
            A value a row, or one for all, for each of the store's columns.
        if_exists : {"error", "skip", "replace"}
            What to do with keys that are stored. Replacing gives the key a new row.
        casting : {"no", "same_kind"}
            Whether values of another dtype may be converted.

        Returns
        -------
        AppendResult

        Raises
        ------
        KeyFormatError, DuplicateKeysError, KeysExistError
        ShapeError, DtypeError, NonFiniteError, UnknownFieldError, UnknownColumnError
        ReadOnlyError, StoreLockedError, StorageFullError, CommitUncertainError
        """
        if if_exists not in ("error", "skip", "replace"):
            raise ValueError(f"expected if_exists 'error', 'skip' or 'replace', found {if_exists!r}")
        batch = read_keys(keys)
        fields = dict(values) if isinstance(values, Mapping) else {None: values}
        with self._writing() as snapshot:
            plan, result = plan_append(
                snapshot, self._keys, batch, fields, columns or {}, if_exists=if_exists, casting=casting
            )
            if plan is not None:
                self._commit(plan)
                if wants_run(self._keys):
                    write_run(self.snapshot)
                    self._index = None
        return result

    def writer(self, *, interval: float = 2.0, max_bytes: int = 256 * 2**20, if_exists: IfExists = "error") -> RowWriter:
        """Return a writer that gathers rows and commits them every `interval` seconds, and at its exit."""
        self._check_writable()
        return RowWriter(self, interval=interval, max_bytes=max_bytes, if_exists=if_exists)

    def delete(self, keys: Sequence[str | Key]) -> int:
        """Delete rows: they are marked, and their files stay as they are. Returns their number.

        Raises
        ------
        MissingKeysError
            Nothing was deleted.
        """
        with self._writing() as snapshot:
            rows = np.unique(self.rows_of(list(keys)))
            if len(rows):
                self._commit(plan_delete(snapshot, rows))
        return len(rows)

    def erase(self, keys: Sequence[str | Key]) -> EraseReceipt:
        """Delete rows and blank them in the files; all rows deleted before are blanked too.

        Row numbers stay, and so do views that hold none of these rows.

        Raises
        ------
        MissingKeysError
            Nothing was erased.
        """
        keys = list(keys)
        with self._writing() as snapshot:
            rows = np.unique(self.rows_of(keys))
            dead = np.concatenate([snapshot.dead_rows, rows])
            appends: dict[str, Values] = {"dead_rows": rows} if len(rows) else {}
            self._recovered = ""
            committed, files = erase_dead(snapshot.folder, snapshot.record, dead, appends)
            self._moved_to(committed)
            if wants_run(self._keys):
                write_run(self.snapshot)
                self._index = None
        hashes = hash_keys(keys)
        return EraseReceipt(
            path=self._path,
            key_hashes=tuple(h.tobytes().hex() for h in hashes),
            rows=tuple(rows.tolist()),
            files_rewritten=files,
        )

    def compact(self) -> None:
        """Write the store anew without its deleted rows, and exchange the folders in one step.

        Views made before raise `StoreChangedError`; other readers keep what they have open.

        Raises
        ------
        OSError
            The file system can't exchange folders; nothing was changed.
        """
        with self._writing() as snapshot:
            compact(snapshot)
            self._snapshot, self._index = self._opened(), None

    def set_column(self, name: str, keys: Sequence[str | Key], values: Any) -> None:
        """Add a column, or replace one, with a value for every live row; one commit.

        Raises
        ------
        MissingKeysError
            Keys that are not stored, or live rows left without a value.
        ShapeError, DtypeError, NameRefusedError
        """
        with self._writing() as snapshot:
            rows = self._all_live(snapshot, keys, f"given a value for {name!r}")
            self._commit(plan_column(snapshot, name, rows, values))

    def add_field(
        self,
        name: str,
        keys: Sequence[str | Key],
        values: Any,
        *,
        spec: FieldSpec | None = None,
        casting: Casting = "no",
    ) -> None:
        """Add a field, with rows for every live row; one commit. The other fields are not touched.

        Raises
        ------
        MissingKeysError
            Keys that are not stored, or live rows left without values.
        NameRefusedError, ShapeError, DtypeError, NonFiniteError
        """
        with self._writing() as snapshot:
            rows = self._all_live(snapshot, keys, f"given rows for {name!r}")
            texts = [str(key) for key in keys]
            self._commit(plan_field(snapshot, name, rows, texts, values, spec, casting))

    def _all_live(self, snapshot: Snapshot, keys: Sequence[str | Key], what: str) -> Rows:
        read_keys(keys)
        rows = self.rows_of(keys)
        left_out = np.setdiff1d(snapshot.live_rows, rows)
        if len(left_out):
            raise MissingKeysError(snapshot.keys_of(left_out), path=self._path, what=what)
        return rows

    # -- moving on ----------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Move on to the newest commit; returns whether there was one. Views stay valid.

        Raises
        ------
        NotAStoreError, CorruptStoreError
        """
        with self._mutex:
            before = self.snapshot
            self._snapshot = self._newest()
            return self._snapshot is not before

    def close(self) -> None:
        """Let go of the store. Arrays that were handed out stay valid."""
        self._snapshot = None
        self._index = None

    def __enter__(self) -> EmbeddingStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _opened(self) -> Snapshot:
        old = self.snapshot
        return Snapshot.open(self._path, mapping=old.mapping, check=old.check)

    def _newest(self) -> Snapshot:
        """Return the newest commit at the path; from the folder that is open, if it is still there."""
        old = self.snapshot
        if old.replaced():
            return self._opened()
        try:
            return old.newest()
        except (StoreChangedError, StoreReplacedError):
            return self._opened()  # erased or replaced at this very moment

    def _check_writable(self) -> None:
        if not self._writable:
            raise ReadOnlyError(self._path, 'it was opened with mode "r"')

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Snapshot]:
        """Hold the lock, on the newest commit, with nothing left behind by a killed writer."""
        self._check_writable()
        with self._mutex, fsio.lock(self._path, timeout=self._lock_timeout):
            self._snapshot = self._newest()
            record = self._snapshot.record
            if record.commit_id != self._recovered:
                self._moved_to(Committed(recover(self._snapshot.folder, record), tidy=True))
            try:
                yield self.snapshot
            except BaseException:
                self._recovered = ""  # whatever was left half done is mended first
                raise

    def _commit(self, plan: Plan) -> None:
        snapshot = self.snapshot
        self._recovered = ""
        self._moved_to(commit(snapshot.folder, snapshot.record, plan.record, plan.appends))

    def _moved_to(self, committed: Committed) -> None:
        """Take up the commit that was just written."""
        snapshot = self.snapshot
        if committed.record.commit_id != snapshot.record.commit_id:
            record, signature = read_record(snapshot.folder)
            self._snapshot = snapshot.advanced(record, signature)
        self._recovered = committed.record.commit_id if committed.tidy else ""

    # -- how it looks -------------------------------------------------------------------------

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the path, generation and number of rows; opened again for reading."""
        record = self.snapshot.record
        arguments = (str(self._path), record.generation, record.rows, self.snapshot.mapping, self.snapshot.check)
        return _reopen, arguments

    def __repr__(self) -> str:
        if self._snapshot is None:
            return f"<EmbeddingStore {str(self._path)!r} (closed)>"
        return "\n".join(f"{name + ':' if name else '':<9}{text}" for name, text in self._described())

    def _repr_html_(self) -> str:
        if self._snapshot is None:
            return f"<code>{html.escape(repr(self))}</code>"
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for name, text in self._described()
        )
        return f"<table>{rows}</table>"

    def _described(self) -> list[tuple[str, str]]:
        record = self.snapshot.record
        names = self.classes
        dead = f" and {record.dead:,} deleted" if record.dead else ""
        lines = [
            ("store", f"{self._path} ({'writable' if self._writable else 'read-only'})"),
            ("rows", f"{len(self):,}{dead}, {_size(self.nbytes)}"),
            ("classes", f"{len(names):,}: {', '.join(names[:8])}{', …' if len(names) > 8 else ''}"),
        ]
        lines += [("field", f"{n} {s.dtype} {s.shape}") for n, s in record.fields.items()]
        lines += [("column", f"{n} {s.dtype}") for n, s in record.columns.items()]
        config = ", ".join(f"{name}={value!r}" for name, value in self.config.items())
        return [*lines, ("config", f"{record.fingerprint[:16]} {config}")]


def _size(nbytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:,.1f} TB"


def _reopen(path: str, generation: str, rows: int, mapping: MappingPolicy, check: Check) -> EmbeddingStore:
    store = open(path, mapping=mapping, check=check)
    record = store.snapshot.record
    if record.generation != generation or record.rows < rows:
        raise StoreChangedError(
            store.path,
            "the store was compacted or replaced since it was pickled",
            expected=(generation, rows),
            found=(record.generation, record.rows),
        )
    return store


def open(  # noqa: A001 - as in h5py, zarr and xarray, it is meant to be called embstore.open
    path: str | os.PathLike[str],
    mode: Mode = "r",
    *,
    config: Mapping[str, Any] | None = None,
    fields: Mapping[str, FieldSpec] | None = None,
    columns: Mapping[str, str] | None = None,
    check: Check = "tail",
    mapping: MappingPolicy = "auto",
    lock_timeout: float = 60.0,
    network: Literal["refuse", "allow"] = "refuse",
    chunk_bytes: int = FIELD_CHUNK_BYTES,
    expected_rows: int = 0,
    provenance: Mapping[str, str] | None = None,
) -> EmbeddingStore:
    """Open a store, or make one.

    Parameters
    ----------
    path : path_like
    mode : {"r", "r+", "a", "w-", "x"}
        Read only (takes no lock, writes nothing); read and write what exists; read and write, made if
        absent; make it, or fail if something is there ("x" is the same).
    config : mapping, optional
        All that the values depend on. Compared with the store's; needed to make one.
    fields : mapping of str to FieldSpec, optional
        Of a new store; else its first rows decide.
    columns : mapping of str to str, optional
        Dtypes of a new store's columns (NumPy's names, or ``"string"``).
    check : {"tail", "touched", "all"}
        Which checksums to check: of the rows committed last, of each chunk when it is first read, or of
        all chunks of a column when it is opened.
    mapping : {"auto", "never"}
        Whether columns may be mapped into memory.
    lock_timeout : float
        Seconds to wait for another writer.
    network : {"refuse", "allow"}
        Whether to write to a network or FUSE file system.
    chunk_bytes, expected_rows : int
        Of a new store: bytes of a field's chunk, and how many rows are to be expected.
    provenance : mapping of str to str, optional
        Of a new store: what is worth knowing (versions, host), but does not decide the values.

    Raises
    ------
    NotAStoreError, StoreExistsError, ConfigMismatchError, ConfigError
    CorruptStoreError, UnsupportedFormatError, NetworkFileSystemError, ReadOnlyError

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> where = tempfile.mkdtemp() + "/demo.zarr"
    >>> with open(where, "w-", config={"encoder": "demo"}) as store:
    ...     store.append(["a:dog", "b:cat"], np.ones((2, 3), np.float32))
    AppendResult(appended=2, skipped=0, replaced=0)
    >>> open(where)["a:dog"]
    array([1., 1., 1.], dtype=float32)
    """
    if mode not in ("r", "r+", "a", "w-", "x"):
        raise ValueError(f'expected mode "r", "r+", "a", "w-" or "x", found {mode!r}')
    place = Path(path).resolve()
    wanted = None if config is None else config if isinstance(config, Config) else Config(config)
    writable = mode != "r"
    if writable and network != "allow":
        fsio.refuse_network(place if place.exists() else place.parent)
    if mode in ("w-", "x") or (mode == "a" and not place.exists()):
        if wanted is None:
            raise TypeError("a new store needs a config: all that its values depend on")
        record = new_record(
            wanted,
            fields=fields,
            columns=columns,
            chunk_bytes=chunk_bytes,
            expected_rows=expected_rows,
            provenance=provenance,
        )
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            with fsio.lock(place, timeout=lock_timeout):
                if os.path.lexists(place):
                    raise StoreExistsError(place)
                create(place, record)
        except StoreExistsError:
            if mode != "a":
                raise  # with "a", another process made it meanwhile
    snapshot = Snapshot.open(place, mapping=mapping, check=check)
    if wanted is not None and (differences := wanted.diff(Config(snapshot.record.config))):
        raise ConfigMismatchError(place, differences)
    return EmbeddingStore(snapshot, writable=writable, lock_timeout=lock_timeout, network=network)


"""The store: a thin front over a snapshot to read from, and commits to write with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from embstore._engine.format.config import Config
from embstore._engine.format.keys import Key, hash_keys
from embstore._engine.format.ragged import Ragged
from embstore._engine.format.record import BFLOAT16, FieldSpec
from embstore._engine.pickles import by_name
from embstore._engine.read.column import Rows
from embstore._engine.read.dtypes import as_numbers
from embstore._engine.read.open_snapshot import open_generation
from embstore._engine.read.read_rows import column_of, padded_rows, span_field, whole_offsets
from embstore._engine.read.snapshot import Snapshot
from embstore._engine.write.check_input import Casting, read_keys
from embstore._engine.write.commit import Values
from embstore._engine.write.compact import compact
from embstore._engine.write.erase import EraseReceipt, erase_dead
from embstore._engine.write.plans import (
    AppendResult,
    IfExists,
    plan_append,
    plan_column,
    plan_delete,
    plan_field,
    plan_fields,
)
from embstore._engine.write.row_writer import RowWriter
from embstore._engine.write.session import Session
from embstore._outputs.tensors import as_tensor
from embstore.errors import DeadRowsError, DtypeError, MissingKeysError, StoreChangedError, UnknownFieldError
from embstore.store.describe import as_html, as_text, describe
from embstore.store.view import Condition, View, filter_rows


class EmbeddingStore:
    """Embeddings of one config, a row a sample, found by key. Made by `embstore.open` or `Cache.open`.

    A store keeps the commit that it was opened at, or that it wrote last; `refresh` moves on.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._config: Config | None = None

    # -- what it is ---------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """Where the store lies, resolved."""
        return self._session.path

    @property
    def snapshot(self) -> Snapshot:
        """The commit that is read from."""
        return self._session.snapshot

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
        return sum(record.arrays[name].row_nbytes * record.arrays[name].length for name in record.fields)

    @property
    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return self._session.writable

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
            raise UnknownFieldError(field, names, path=self.path)
        return field

    # -- rows by key --------------------------------------------------------------------------

    def find(self, keys: Sequence[str | Key]) -> Rows:
        """Return the row of each key, -1 where it is not stored: ``(len(keys),) int64``."""
        return self._session.index.find_keys(keys)

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
            raise MissingKeysError(missing, path=self.path)
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

    def __getitem__(self, key: str | Key | Sequence[str | Key]) -> Any:
        """Return the only field's row of a key, read-only; or fresh rows of several keys, as `fetch` does."""
        if isinstance(key, str | Key):
            return self._row(int(self.rows_of([key])[0]), self.field_name())
        if isinstance(key, list | tuple | np.ndarray) and (not len(key) or isinstance(key[0], str | Key)):
            return self.fetch(key)
        raise TypeError(f"a store is indexed by a key or a list of keys, found {key!r}; by row, use take()")

    def _row(self, row: int, field: str) -> np.ndarray[Any, Any]:
        values = span_field(self.snapshot, field, row)
        numbers: np.ndarray[Any, Any] = as_numbers(values, self.snapshot.record.fields[field])
        return numbers

    def fetch(self, keys: Sequence[str | Key], field: str | None = None) -> Any:
        """Copy the rows of `keys`, in their order and with their repeats: ``(len(keys), *shape)``; see `take`.

        Raises
        ------
        MissingKeysError, UnknownFieldError
        """
        return self.take(self.rows_of(keys), field)

    def take(self, rows: Any, field: str | None = None) -> Any:
        """Copy rows by number, writable; bfloat16 comes as float32.

        Returns
        -------
        ndarray, (len(rows), *shape)
            Of a ragged field `Padded` instead: values ``(len(rows), longest, *shape)``, and lengths. One row of
            it is not copied, but read-only.

        Raises
        ------
        IndexError
            A number that is negative or not below the number of rows.
        """
        name = self.field_name(field)
        rows = _row_numbers(rows)
        spec = self.snapshot.record.fields[name]
        if spec.ragged:
            padded = padded_rows(self.snapshot, name, rows)
            return padded._replace(values=as_numbers(padded.values, spec))
        return as_numbers(self.snapshot.take(name, rows), spec)

    # -- whole columns ------------------------------------------------------------------------

    def _whole(self, field: str | None, dead: Literal["refuse", "include"]) -> str:
        name = self.field_name(field)
        if dead == "refuse" and self.snapshot.record.dead:
            raise DeadRowsError(name, path=self.path, dead=self.snapshot.record.dead)
        return name

    def array(self, field: str | None = None, *, dead: Literal["refuse", "include"] = "refuse") -> Any:
        """Return a whole column without a copy: ``(rows, *shape)``, read-only; a ragged field's as `Ragged`.

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
            raise DtypeError(
                name, expected="a dtype of NumPy's", found=BFLOAT16, hint="use tensor() or select().to_numpy()"
            )
        if self.snapshot.record.fields[name].ragged:
            return Ragged(self.snapshot.span(name), whole_offsets(self.snapshot, name))
        return self.snapshot.span(name)

    def tensor(self, field: str | None = None, *, dead: Literal["refuse", "include"] = "refuse") -> Any:
        """Return a whole column as a tensor without a copy: ``(rows, *shape)``; a ragged field's as `Ragged` ones.

        torch has no read-only tensors: this one may be written to, and keeps what is written to itself
        (pages are copied as they are written); the files never change.

        Each call maps the column again. Read it in order: for batches in random order
        `embstore.torch.EmbeddingDataset` is 6 to 27 times as fast as ``store.tensor()[indices]``.
        """
        name = self._whole(field, dead)
        values = as_tensor(self.snapshot.writable_copy(name), self.snapshot.record.fields[name])
        if self.snapshot.record.fields[name].ragged:
            return Ragged(values, as_tensor(whole_offsets(self.snapshot, name).copy()))
        return values

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
            chosen = _row_numbers(rows)
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
        return self._session.apply(
            lambda snapshot, index: plan_append(
                snapshot, index, batch, fields, columns or {}, if_exists=if_exists, casting=casting
            )
        )

    def writer(
        self,
        *,
        interval: float = 2.0,
        max_bytes: int = 256 * 2**20,
        if_exists: IfExists = "error",
        casting: Casting = "no",
    ) -> RowWriter:
        """Return a writer that gathers rows and commits them every `interval` seconds, and at its exit."""
        self._session.check_writable()
        return RowWriter(self._session, interval=interval, max_bytes=max_bytes, if_exists=if_exists, casting=casting)

    def delete(self, keys: Sequence[str | Key]) -> int:
        """Delete rows: they are marked, and their files stay as they are. Returns their number.

        Raises
        ------
        MissingKeysError
            Nothing was deleted.
        """
        with self._session.writing() as snapshot:
            rows = np.unique(self.rows_of(list(keys)))
            if len(rows):
                self._session.commit(plan_delete(snapshot, rows))
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
        with self._session.writing() as snapshot:
            rows = np.unique(self.rows_of(keys))
            dead = np.concatenate([snapshot.dead_rows, rows])
            appends: dict[str, Values] = {"dead_rows": rows} if len(rows) else {}
            committed, files = erase_dead(snapshot.local_folder, snapshot.record, dead, appends)
            self._session.moved_to(committed)
            self._session.tidy_index()
        hashes = hash_keys(keys)
        return EraseReceipt(
            path=self.path,
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
        with self._session.writing() as snapshot:
            compact(snapshot)
            self._session.reopen()

    def set_column(
        self, name: str, keys: Sequence[str | Key], values: Any, *, fill: Any = None, commit_id: str | None = None
    ) -> None:
        """Add a column, or replace one, with a value for every live row; one commit.

        Parameters
        ----------
        name : str
        keys : sequence of str or Key
        values : array_like, (len(keys),), or one value for all
        fill : optional
            The value of live rows that `keys` leaves out, also of those that another process adds meanwhile.
        commit_id : str, optional
            Of the commit that the store must still be at; nothing is written if it is not.

        Raises
        ------
        StoreChangedError
            The store is at another commit than `commit_id`.
        MissingKeysError
            Keys that are not stored, or live rows left without a value and no `fill`.
        ShapeError, DtypeError, NameRefusedError
        """
        with self._session.writing() as snapshot:
            found = snapshot.record.commit_id
            if commit_id not in (None, found):
                raise StoreChangedError(self.path, "it is at another commit", expected=commit_id, found=found)
            if fill is None:
                rows = self._all_live(snapshot, keys, f"given a value for {name!r}")
            else:
                read_keys(keys)
                rows = self.rows_of(keys)
                left_out = np.setdiff1d(snapshot.live_rows, rows)
                given = [values] * len(rows) if isinstance(values, str | int | float) else list(values)
                rows, values = np.concatenate([rows, left_out]), [*given, *[fill] * len(left_out)]
                if not values and not isinstance(fill, str):
                    values = np.empty(0, np.asarray(fill).dtype)
            self._session.commit(plan_column(snapshot, name, rows, values))

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
        with self._session.writing() as snapshot:
            rows = self._all_live(snapshot, keys, f"given rows for {name!r}")
            texts = [str(key) for key in keys]
            self._session.commit(plan_field(snapshot, name, rows, texts, values, spec, casting))

    def copy_fields(self, other: EmbeddingStore, names: Sequence[str], *, same: Sequence[str] = ()) -> None:
        """Add fields that another store has for all live keys of this one, a block at a time; one commit.

        Parameters
        ----------
        other : EmbeddingStore
        names : sequence of str
            Of fields that this store does not have.
        same : sequence of str
            Columns in which the rows of both must agree; where they don't, the other's row does not count.

        Raises
        ------
        MissingKeysError
            Lists the live keys that have no such row in the other store.
        UnknownFieldError, UnknownColumnError, NameRefusedError
        """
        specs = {name: other.fields[other.field_name(name)] for name in names}
        with self._session.writing() as snapshot:
            live = snapshot.live_rows
            found = other._session.index.find(snapshot.take("key_hash", live))
            there = np.flatnonzero(found >= 0)
            for column in same:
                mine, theirs = (
                    column_of(at, column, rows)
                    for at, rows in ((snapshot, live[there]), (other.snapshot, found[there]))
                )
                there = there[mine == theirs]
            if len(there) < len(live):
                left_out = np.delete(live, there)
                raise MissingKeysError(snapshot.keys_of(left_out), path=other.path, what="current there")
            rows = np.full(snapshot.record.rows, -1, dtype=np.int64)
            rows[live] = found
            self._session.commit(plan_fields(snapshot, other.snapshot, specs, rows))

    def _all_live(self, snapshot: Snapshot, keys: Sequence[str | Key], what: str) -> Rows:
        read_keys(keys)
        rows = self.rows_of(keys)
        left_out = np.setdiff1d(snapshot.live_rows, rows)
        if len(left_out):
            raise MissingKeysError(snapshot.keys_of(left_out), path=self.path, what=what)
        return rows

    # -- moving on ----------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Move on to the newest commit; returns whether there was one. Views stay valid.

        Raises
        ------
        NotAStoreError, CorruptStoreError
        """
        return self._session.refresh()

    def close(self) -> None:
        """Let go of the store. Arrays that were handed out stay valid."""
        self._session.close()

    def __enter__(self) -> EmbeddingStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the path, generation and number of rows; opened again for reading."""
        snapshot, record = self.snapshot, self.snapshot.record
        place, options = snapshot.folder.origin
        how = {"mapping": snapshot.mapping, "check": snapshot.check, "storage_options": options}
        return by_name("embstore:EmbeddingStore._reopened", place, record.generation, record.rows, how)

    @classmethod
    def _reopened(cls, place: str, generation: str, rows: int, how: Mapping[str, Any]) -> EmbeddingStore:
        snapshot = open_generation(place, generation=generation, rows=rows, **how)
        return cls(Session(snapshot, writable=False, lock_timeout=0))

    def __repr__(self) -> str:
        if self._session.closed:
            return f"<EmbeddingStore {str(self.path)!r} (closed)>"
        return f"<EmbeddingStore>\n{as_text(self._described())}"

    def _repr_html_(self) -> str:
        return as_html([("store", f"{self.path} (closed)")] if self._session.closed else self._described())

    def _described(self) -> list[tuple[str, str]]:
        return describe(self.snapshot, writable=self.writable)


def _row_numbers(rows: Any) -> Rows:
    """Return rows as numbers; a mask would be taken for rows 0 and 1."""
    found = np.asarray(rows)
    if found.dtype == bool:
        raise TypeError(
            "expected row numbers, found a mask: of a view that is view[mask]; else numpy.flatnonzero(mask)"
        )
    return found.astype(np.int64, copy=False) if len(found) else np.empty(0, np.int64)


def session_of(store: EmbeddingStore) -> Session:
    """Return the session of a store, for the rooms that plan commits of their own."""
    return store._session

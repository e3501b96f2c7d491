"""Stores and views of them: choosing rows, and changing a store."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.keys import Key, hash_keys
from embstore._engine.format.record import FieldSpec
from embstore._engine.pickles import by_name
from embstore._engine.read.open_snapshot import open_generation
from embstore._engine.read.read_rows import column_of
from embstore._engine.rng import Rng, generator_of
from embstore._engine.write.check_input import Casting, read_keys
from embstore._engine.write.compact import compact
from embstore._engine.write.erase import EraseReceipt, erase_dead
from embstore._engine.write.plans import AppendResult, IfExists, plan_append, plan_delete, plan_field
from embstore._engine.write.row_writer import RowWriter
from embstore._engine.write.session import Session
from embstore.errors import StoreChangedError
from embstore.store.changes import check_all_live, plan_copied_fields, plan_filled_column
from embstore.store.filter_rows import Condition, filter_rows, row_numbers
from embstore.store.reader import StoreReader
from embstore.store.selected_rows import SelectedRows
from embstore.store.split_rows import split_rows


class EmbeddingStore(StoreReader):
    """Embeddings of one config, a row a sample, found by key. Made by `embstore.open` or `Cache.open`.

    A store keeps the commit that it was opened at, or that it wrote last; `refresh` moves on.
    """

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
            chosen = row_numbers(rows)
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
            committed, files = erase_dead(
                snapshot.local_folder, snapshot.record, dead, {"dead_rows": rows} if len(rows) else {}
            )
            self._session.moved_to(committed)
            self._session.tidy_index()
        hashes = tuple(digest.tobytes().hex() for digest in hash_keys(keys))
        return EraseReceipt(path=self.path, key_hashes=hashes, rows=tuple(rows.tolist()), files_rewritten=files)

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
            rows = self.rows_of(read_keys(keys).texts)
            self._session.commit(plan_filled_column(snapshot, name, rows, values, fill))

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
            texts = read_keys(keys).texts
            rows = self.rows_of(texts)
            check_all_live(snapshot, rows, f"given rows for {name!r}")
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
            self._session.commit(plan_copied_fields(snapshot, other._session.index, specs, same=same))

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


class View(SelectedRows):
    """Some rows of a store, in an order.

    Made by `EmbeddingStore.select`; it stays valid while the store grows, and raises
    `StoreChangedError` once its rows were erased or renumbered (by a compaction).
    """

    __slots__ = ()

    store: EmbeddingStore

    def __getitem__(self, places: slice | Sequence[int] | NDArray[Any]) -> View:
        """Return the view of some places of this one: a slice, a list of places or a mask."""
        if isinstance(places, int | np.integer | str):
            raise TypeError(
                f"a view is indexed by a slice, a list of places or a mask, found {places!r}; for one row "
                f"use view.to_numpy()[i], or store[key]"
            )
        return self._restored(self.store, self.rows[places], self._generation, self._epoch)

    def batches(self, size: int) -> Iterator[View]:
        """Yield the view in pieces of `size` rows; the last may be smaller."""
        if size < 1:
            raise ValueError(f"expected a batch of at least one row, found {size}")
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def select(
        self,
        *,
        classes: Sequence[str] | str | None = None,
        where: Mapping[str, Condition] | None = None,
    ) -> View:
        """Return the rows of this view that are also of these classes, and that meet the conditions.

        See `EmbeddingStore.select`.
        """
        return View(self.store, filter_rows(self.snapshot(), self.rows, classes, where))

    def sample(self, n: int, *, rng: Rng) -> View:
        """Return `n` rows drawn without replacement.

        Parameters
        ----------
        n : int
        rng : int or numpy.random.Generator
            A seed gives the same rows at each call.

        Raises
        ------
        ValueError
            There are fewer.
        """
        return self[generator_of(rng).choice(len(self), size=n, replace=False)]

    def split(
        self,
        ratios: Mapping[str, float],
        *,
        rng: Rng,
        by: Literal["class"] | str | None = "class",
        group: str | None = None,
    ) -> dict[str, View]:
        """Split the rows at random.

        Parameters
        ----------
        ratios : mapping of str to float
            Sum to 1.
        rng : int or numpy.random.Generator
        by : str, optional
            ``"class"``, a column, or None: each of its values is split in these ratios.
        group : str, optional
            A column; rows that share its value stay together (augmented views of one recording leak
            from train into test otherwise).

        Returns
        -------
        dict of str to View
            Each in the order of this view.
        """
        snapshot = self.snapshot()
        strata = None
        if by is not None:
            strata = self.class_names if by == "class" else column_of(snapshot, by, self.rows).tolist()
        groups = None if group is None else column_of(snapshot, group, self.rows).tolist()
        places = split_rows(len(self), ratios, rng=rng, strata=strata, groups=groups)
        return {name: self[chosen] for name, chosen in places.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the store and the row numbers."""
        rows: Any = self.rows
        if len(rows) and (np.diff(rows) == 1).all():
            rows = (int(rows[0]), int(rows[-1]) + 1)
        return by_name("embstore:View._restored", self.store, rows, self._generation, self._epoch)

    @classmethod
    def _restored(cls, store: EmbeddingStore, rows: Any, generation: str, epoch: int) -> View:
        view = cls(store, np.arange(*rows) if isinstance(rows, tuple) else rows)
        view._generation, view._epoch = generation, epoch
        return view

    def __repr__(self) -> str:
        names = self.classes
        shown = ", ".join(names[:6]) + (f", … ({len(names)} classes)" if len(names) > 6 else "")
        return f"<View of {len(self):,} of {len(self.store):,} rows of {str(self.store.path)!r}: {shown or 'no rows'}>"

    def _repr_html_(self) -> str:
        return f"<code>{html.escape(repr(self))}</code>"


def session_of(store: EmbeddingStore) -> Session:
    """Return the session of a store, for the rooms that plan commits of their own."""
    return store._session

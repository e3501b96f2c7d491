"""The methods of `EmbeddingStore` that write. `changes` has the plans over all live rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

import numpy as np

from embstore._engine.format.arguments import check_choice, mapping_of, text_list
from embstore._engine.format.keys import Key, key_list
from embstore._engine.format.record import FieldSpec, check_name
from embstore._engine.read.column import Rows
from embstore._engine.read.key_index import KeyIndex
from embstore._engine.read.snapshot import Snapshot
from embstore._engine.write.check_input import Casting, named_rows, no_rows, read_keys
from embstore._engine.write.compact import compact
from embstore._engine.write.erase import EraseReceipt
from embstore._engine.write.fold_parts import fold
from embstore._engine.write.parts_session import PartsSession
from embstore._engine.write.plans import AppendResult, IfExists, Plan, plan_append, plan_delete, plan_field
from embstore._engine.write.row_writer import RowWriter
from embstore.errors import StoreChangedError
from embstore.store.changes import check_all_live, erase_from_parts, erase_keys, plan_columns, plan_copied_fields
from embstore.store.pool import How, plan_pooled
from embstore.store.reader import StoreReader
from embstore.store.row_tables import RowTables


class StoreWriter(StoreReader):
    """The methods of `EmbeddingStore` that write."""

    def append(
        self,
        keys: Iterable[str | Key],
        values: Any,
        *,
        columns: Mapping[str, Any] | None = None,
        if_exists: IfExists = "error",
        casting: Casting = "no",
    ) -> AppendResult:
        """Add rows durably in one commit: all of them or none.

        If the store was made without fields, its first rows decide the fields and columns.

        Parameters
        ----------
        keys : iterable of str or Key
        values : array_like, (n, *shape), or mapping of field names to these
            NumPy arrays, lists, or torch tensors of any device. A ragged field takes `Ragged`, `Padded` or a list.
        columns : mapping, optional
            For each column of the store, one value for each row or one value for all rows. New keys have the fill of
            a column that is left out.
        if_exists : {"error", "skip", "replace"}
            How to treat keys that are already stored. "replace" gives the key a new row, which keeps the values of
            columns that are not in `columns`.
        casting : {"no", "same_kind"}
            "same_kind" converts values of another dtype.

        Returns
        -------
        AppendResult

        Raises
        ------
        KeyFormatError, DuplicateKeysError, KeysExistError
        ShapeError, DtypeError, NonFiniteError, UnknownFieldError, UnknownColumnError
        ReadOnlyError, StoreLockedError, StorageFullError, CommitUncertainError
        """
        check_choice("if_exists", if_exists, get_args(IfExists))
        batch = read_keys(keys)
        fields = named_rows(values)
        described = named_rows(mapping_of("columns", columns, "column names to values"))
        if no_rows(batch.texts, fields):
            self._session.check_writable()
            return AppendResult()
        return self._session.apply(
            lambda snapshot, index: plan_append(
                snapshot, index, batch, fields, described, if_exists=if_exists, casting=casting
            )
        )

    def writer(
        self,
        *,
        interval: float | None = None,
        max_bytes: int = 256 * 2**20,
        if_exists: IfExists = "error",
        casting: Casting = "no",
    ) -> RowWriter:
        """Return a context manager that collects rows and commits them, the last ones at its exit.

        Parameters
        ----------
        interval : float, optional
            Seconds between commits. By default 2, and 20 in a bucket, where each commit makes a part.
        max_bytes : int
            Bytes of collected rows at which they are committed early.
        if_exists, casting
            As for `append`.

        Raises
        ------
        ReadOnlyError
        """
        self._session.check_writable()
        interval = self._session.interval if interval is None else interval
        return RowWriter(self._session, interval=interval, max_bytes=max_bytes, if_exists=if_exists, casting=casting)

    def delete(self, keys: Iterable[str | Key]) -> int:
        """Mark rows as deleted, and return their number. Their bytes stay in the files: see `erase` and `compact`.

        Raises
        ------
        MissingKeysError
            Nothing was deleted.
        """
        wanted = key_list(keys, in_order=False)

        def plan(snapshot: Snapshot, _: KeyIndex) -> tuple[Plan | None, int]:
            rows = np.unique(self.rows_of(wanted))
            return (plan_delete(snapshot, rows) if len(rows) else None), len(rows)

        return self._session.apply(plan)

    def erase(self, keys: Iterable[str | Key], *, copies: bool = False) -> EraseReceipt:
        """Delete rows and blank them in the files. Rows that were deleted before are blanked as well.

        Row numbers stay the same. Views without these rows stay valid.

        Parameters
        ----------
        keys : iterable of str or Key
        copies : bool
            Erase also the rows of other keys that were made from the same content. Without it, the receipt lists them.

        Returns
        -------
        EraseReceipt

        Raises
        ------
        MissingKeysError
            Nothing was erased.
        EraseUnfinishedError
            The rows are deleted, but not blanked. The same call, repeated, finishes the erase.
        """
        given = key_list(keys, in_order=False)
        if isinstance(self._session, PartsSession):
            return erase_from_parts(self._session, given, copies=copies)
        with self._session.writing(recovered=True):
            return erase_keys(self._session, given, copies=copies)

    def compact(self) -> None:
        """Write the store again without its deleted rows, and exchange the folders in one step.

        Views made before raise `StoreChangedError`. Other readers keep the files that they have open.

        Files of others in the folder stay.

        Raises
        ------
        CompactionRefusedError
            The file system can't exchange folders. Nothing was changed.
        StoreExistsError
            A folder of others has the name of an array. Nothing was changed.
        """
        if isinstance(self._session, PartsSession):
            fold(self._session)
            return
        with self._session.writing(recovered=True) as snapshot:
            compact(snapshot)
            self._session.refresh()

    def set_columns(
        self,
        columns: Mapping[str, Any],
        keys: Iterable[str | Key] | RowTables | None = None,
        *,
        fill: Mapping[str, Any] | None = None,
        commit_id: str | None = None,
    ) -> tuple[str, ...]:
        """Add and change columns, all of them in one commit. Nothing is written if the values are the stored ones.

        Rows that are not in `keys` keep their values. In a new column they have its fill. In a bucket only a store
        without rows can get columns.

        Parameters
        ----------
        columns : mapping of str to array_like, (len(keys),), or to one value for all `keys`
            ``dict(frame[["split", "age"]])`` makes one of a DataFrame. Values go into the dtype of a stored column. If
            they do not fit and all live rows are given, the column takes their dtype.
        keys : iterable of str or Key, or View, optional
            Default: all live rows, in the order of the store.
        fill : mapping of str to value, optional
            The value of rows that are given none, now and in later appends. The column records it. By default it is ""
            for text and NaN for floats. Integers and bools have none: each row then needs a value.
        commit_id : str, optional
            The commit at which the store must still be. Otherwise nothing is written.

        Returns
        -------
        tuple of str
            The columns that changed.

        Raises
        ------
        StoreChangedError
            The store is at another commit than `commit_id`, or rows of the view were deleted.
        ReadOnlyError
            The change is one of stored rows in a bucket.
        MissingKeysError
            Some keys are not stored, or live rows get no value and a new column has no fill.
        DuplicateKeysError, ShapeError, DtypeError, NameRefusedError

        Examples
        --------
        >>> import embstore, tempfile
        >>> store = embstore.open(tempfile.mkdtemp() + "/demo.zarr", "w-", config={"encoder": "demo"})
        >>> _ = store.append(["a", "b"], np.ones((2, 3), np.float32))
        >>> store.set_columns({"says": ["woof", "meow"], "age": 3}, fill={"age": -1})
        ('says', 'age')
        >>> store.set_columns({"says": "purr", "age": 3}, ["b"])
        ('says',)
        >>> _ = store.append(["c"], np.ones((1, 3), np.float32))  # rows without a value take the fill
        >>> store.select().column("says").tolist(), store.select().column("age").tolist()
        (['woof', 'purr', ''], [3, 3, -1])
        """
        given = named_rows(mapping_of("columns", columns, "column names to values"))
        fills = mapping_of("fill", fill, "column names to values")
        session = self._session

        def plan_on(snapshot: Snapshot) -> tuple[Plan | None, tuple[str, ...]]:
            found = snapshot.record.commit_id
            if commit_id not in (None, found):
                raise StoreChangedError(self.path, "it is at another commit", expected=commit_id, found=found)
            return plan_columns(snapshot, self._rows_to_change(keys), given, fills)

        if isinstance(session, PartsSession):
            return session.apply(lambda snapshot, _: session.without_rows(snapshot, *plan_on(snapshot)))
        with session.writing() as snapshot:
            plan, changed = plan_on(snapshot)
            if plan is not None:
                session.commit(plan)
        return changed

    def _rows_to_change(self, keys: Iterable[str | Key] | RowTables | None) -> Rows:
        if keys is None:
            return self.snapshot.live_rows
        if not isinstance(keys, RowTables):
            return self.rows_of(read_keys(keys).texts)
        if keys.store is not self:
            return self.rows_of(read_keys(keys.keys).texts)
        if len(np.unique(keys.rows)) < len(keys):
            read_keys(keys.keys)  # raises
        if keys.snapshot().is_dead(keys.rows).any():
            raise StoreChangedError(self.path, "rows of the view were deleted", expected=len(keys), found="fewer rows")
        return keys.rows

    def set_column(self, name: str, keys: Iterable[str | Key] | RowTables, values: Any, *, fill: Any = None) -> None:
        """Add or change one column. See `set_columns`."""
        chosen = keys if isinstance(keys, RowTables) else key_list(keys)
        self.set_columns({check_name(name): values}, chosen, fill=None if fill is None else {name: fill})

    def add_field(
        self,
        name: str,
        keys: Iterable[str | Key],
        values: Any,
        *,
        spec: FieldSpec | None = None,
        casting: Casting = "no",
    ) -> None:
        """Add a field in one commit, with values for every live row. The other fields don't change.

        Parameters
        ----------
        name : str
        keys : iterable of str or Key
        values : array_like, (len(keys), *shape)
        spec : FieldSpec, optional
            By default it follows from `values`.
        casting : {"no", "same_kind"}
            As for `append`.

        Raises
        ------
        MissingKeysError
            Some keys are not stored, or live rows get no values.
        NameRefusedError, ShapeError, DtypeError, NonFiniteError
        """
        with self._session.rewriting("add_field") as snapshot:
            texts = read_keys(keys).texts
            rows = self.rows_of(texts)
            check_all_live(snapshot, rows, f"given rows for {name!r}")
            self._session.commit(plan_field(snapshot, name, rows, texts, values, spec, casting))

    def add_pooled(self, name: str, *, from_field: str | None = None, how: How) -> None:
        """Add a field of pooled tokens in one commit, computed from a stored field a block at a time.

        Parameters
        ----------
        name : str
        from_field : str, optional
            A ragged field, or one whose rows are ``(tokens, *shape)``. Default: the primary field.
        how : {"mean", "max", "cls", "first", "last"}
            "cls" and "first" take the first token. A mean is float32, or float64 of a float64 field.

        Raises
        ------
        ShapeError
            The field has no tokens to pool, or some rows have none.
        UnknownFieldError, NameRefusedError
        """
        with self._session.rewriting("add_pooled") as snapshot:
            self._session.commit(plan_pooled(snapshot, check_name(name), self.field_name(from_field), how))

    def copy_fields(self, other: StoreReader, names: Sequence[str], *, same: Sequence[str] = ()) -> None:
        """Copy fields from a store that has all live keys of this one, a block at a time and in one commit.

        Parameters
        ----------
        other : EmbeddingStore
        names : sequence of str
            Fields of `other` that this store does not have.
        same : sequence of str
            Columns in which both rows of a key must agree. A row of `other` that differs is treated as missing.

        Raises
        ------
        MissingKeysError
            Some live keys have no such row in `other`. The error lists them.
        UnknownFieldError, UnknownColumnError, NameRefusedError
        """
        if not isinstance(other, StoreReader):
            raise TypeError(f"expected an EmbeddingStore, found {other!r:.200}")
        specs = {name: other.fields[other.field_name(name)] for name in text_list("names", names)}
        columns = text_list("same", same)
        with self._session.rewriting("copy_fields") as snapshot:
            self._session.commit(plan_copied_fields(snapshot, other._session.index, specs, same=columns))

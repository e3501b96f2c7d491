"""The reading side of a store: rows by key, rows by number, and whole columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from embstore._engine.format.config import Config
from embstore._engine.format.keys import Key
from embstore._engine.format.ragged import Ragged
from embstore._engine.format.record import BFLOAT16, FieldSpec
from embstore._engine.read.column import Rows
from embstore._engine.read.dtypes import as_numbers
from embstore._engine.read.read_rows import padded_rows, span_field, whole_offsets
from embstore._engine.read.snapshot import Snapshot
from embstore._engine.write.session import Session
from embstore._outputs.tensors import as_tensor
from embstore.errors import DeadRowsError, DtypeError, MissingKeysError, UnknownFieldError
from embstore.store.describe import as_html, as_text, describe
from embstore.store.filter_rows import row_numbers


class StoreReader:
    """The methods of `EmbeddingStore` that read. A view needs no others."""

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
            row, name = int(self.rows_of([key])[0]), self.field_name()
            return as_numbers(span_field(self.snapshot, name, row), self.snapshot.record.fields[name])
        if isinstance(key, list | tuple | np.ndarray) and (not len(key) or isinstance(key[0], str | Key)):
            return self.fetch(key)
        raise TypeError(f"a store is indexed by a key or a list of keys, found {key!r}; by row, use take()")

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
        rows = row_numbers(rows)
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._session.closed:
            return f"<EmbeddingStore {str(self.path)!r} (closed)>"
        return f"<EmbeddingStore>\n{as_text(self._described())}"

    def _repr_html_(self) -> str:
        return as_html([("store", f"{self.path} (closed)")] if self._session.closed else self._described())

    def _described(self) -> list[tuple[str, str]]:
        return describe(self.snapshot, writable=self.writable)

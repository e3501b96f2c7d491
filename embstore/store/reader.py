"""The reading side of a store: rows by key, rows by number, and whole columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self
from unicodedata import normalize

import numpy as np

from embstore._engine.format.arguments import check_choice, row_numbers
from embstore._engine.format.config import Config
from embstore._engine.format.keys import Key, key_list
from embstore._engine.format.ragged import Ragged
from embstore._engine.format.record import BFLOAT16, FieldSpec
from embstore._engine.format.text import plain_text
from embstore._engine.notebook import html_table
from embstore._engine.pickles import by_name
from embstore._engine.read.column import Rows
from embstore._engine.read.dtypes import as_numbers
from embstore._engine.read.history import Position
from embstore._engine.read.open_snapshot import open_later
from embstore._engine.read.read_rows import padded_rows, span_field, whole_offsets
from embstore._engine.read.snapshot import Snapshot
from embstore._engine.write.session import Session
from embstore._outputs.tensors import as_tensor
from embstore.errors import DeadRowsError, DtypeError, MissingKeysError, UnknownFieldError
from embstore.store.describe import as_text, describe


class StoreReader:
    """The methods of `EmbeddingStore` that read. A view needs no others."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._config: Config | None = None

    # -- description --------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The folder of the store, resolved."""
        return self._session.path

    @property
    def snapshot(self) -> Snapshot:
        """The commit that is read."""
        return self._session.snapshot

    @property
    def config(self) -> Config:
        """The config: everything that the values depend on."""
        if self._config is None:
            self._config = Config(self.snapshot.record.config)
        return self._config

    @property
    def fields(self) -> dict[str, FieldSpec]:
        """The embedding fields by name."""
        return dict(self.snapshot.record.fields)

    @property
    def columns(self) -> dict[str, str]:
        """The dtype of each column by name: a NumPy name, or ``"string"``."""
        return {name: spec.dtype for name, spec in self.snapshot.record.columns.items()}

    @property
    def classes(self) -> list[str]:
        """All classes, in the order of their first rows. Rows without a class add none."""
        return self.snapshot.classes

    @property
    def rows(self) -> Rows:
        """Numbers of the live rows, ascending: ``(len(store),) int64``."""
        return self.snapshot.live_rows.copy()

    @property
    def nbytes(self) -> int:
        """Bytes of all rows of all fields, before compression and with deleted rows."""
        record = self.snapshot.record
        return sum(record.arrays[name].row_nbytes * record.arrays[name].length for name in record.fields)

    @property
    def writable(self) -> bool:
        """True if the store was opened for writing."""
        return self._session.writable

    def __len__(self) -> int:
        record = self.snapshot.record
        return record.rows - record.dead

    def field_name(self, field: str | None = None) -> str:
        """Return the name of the field. None stands for the primary field.

        Raises
        ------
        UnknownFieldError
            The store has no such field, or none yet.
        """
        record, field = self.snapshot.record, plain_text(field)
        names = record.fields
        if field is None and (record.primary is not None or len(names) == 1):
            return record.primary or next(iter(names))
        if not isinstance(field, str) or field not in names:
            raise UnknownFieldError(field, names, path=self.path)
        return field

    # -- rows by key --------------------------------------------------------------------------

    def find(self, keys: Iterable[str | Key]) -> Rows:
        """Return the row of each key, and -1 for a key that is not stored: ``(len(keys),) int64``."""
        return self._session.index.find_keys(key_list(keys))

    def rows_of(self, keys: Iterable[str | Key]) -> Rows:
        """Return the row of each key, in the order of `keys`: ``(len(keys),) int64``.

        Raises
        ------
        MissingKeysError
            Some keys are not stored. The error lists all of them, and the classes that their file_ids do have.
        KeyFormatError
            One of the missing keys is malformed.
        """
        keys = key_list(keys)
        rows = self.find(keys)
        if len(rows) and rows.min() < 0:
            missing = [str(Key.parse(keys[i])) for i in np.flatnonzero(rows < 0).tolist()]
            others = self._session.index.others_of(missing)
            raise MissingKeysError(missing, path=self.path, hint=self._other_form(missing), others=others)
        return rows

    def _other_form(self, missing: list[str]) -> str:
        """Return a hint if missing keys are stored in another Unicode form, which looks the same."""
        for form in ("NFC", "NFD"):
            others = [normalize(form, key) for key in missing if not key.isascii()]
            if others and (count := int((self.find(others) >= 0).sum())):
                return f"{count:,} of them are stored in the Unicode form {form}: unicodedata.normalize({form!r}, key)"
        return ""

    def missing(self, keys: Iterable[str | Key]) -> list[str]:
        """Return the keys that are not stored, in the order of `keys`."""
        texts = [str(Key.parse(key)) for key in key_list(keys, in_order=False)]
        rows = self.find(texts)
        return [texts[i] for i in np.flatnonzero(rows < 0).tolist()]

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str | Key) and bool(self.find([key])[0] >= 0)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys of the live rows, in row order."""
        snapshot = self.snapshot
        step = 65_536
        rows = snapshot.live_rows
        for start in range(0, len(rows), step):
            yield from snapshot.keys_of(rows[start : start + step])

    def __getitem__(self, key: str | Key | Iterable[str | Key] | tuple[Any, str]) -> Any:
        """Return the row of one key in the primary field, read-only. For many keys, copy rows as `fetch` does.

        Any iterable of keys is taken that has an order: a list, an array, a Series or an Index of pandas, a generator.
        ``store[key, "mean"]`` and ``store[keys, "mean"]`` read another field. So a tuple is never a list of keys.

        Raises
        ------
        MissingKeysError, UnknownFieldError
        """
        field: str | None = None
        if isinstance(key, tuple) and not isinstance(key, Key):
            if len(key) != 2 or not isinstance(key[1], str):
                raise TypeError(f"expected a key, a list of keys, or these and a field, found {key!r:.200}")
            key, field = key[0], key[1]
        if isinstance(key, str | Key):
            row, name = int(self.rows_of([key])[0]), self.field_name(field)
            return as_numbers(span_field(self.snapshot, name, row), self.snapshot.record.fields[name])
        if isinstance(key, Iterable) and not isinstance(key, bytes | Mapping):
            keys = key_list(key)
            if not keys or isinstance(keys[0], str | Key):
                return self.fetch(keys, field)
        raise TypeError(f"expected a key or a list of keys, found {key!r:.200}; for row numbers use take()")

    def fetch(self, keys: Iterable[str | Key], field: str | None = None) -> Any:
        """Copy the rows of `keys`, in their order and with repeats: ``(len(keys), *shape)``. See `take`.

        Raises
        ------
        MissingKeysError, UnknownFieldError
        """
        return self.take(self.rows_of(keys), field)

    def take(self, rows: Any, field: str | None = None) -> Any:
        """Copy rows by number. The copy is writable, and bfloat16 is converted to float32.

        Returns
        -------
        ndarray, (len(rows), *shape)
            For a ragged field `Padded`: values ``(len(rows), longest, *shape)``, and lengths ``(len(rows),) int64``.
            A single row of a ragged field is not copied, and is read-only.

        Raises
        ------
        IndexError
            A number is negative, or not below the number of rows.
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
        check_choice("dead", dead, ("refuse", "include"))
        name = self.field_name(field)
        if dead == "refuse" and self.snapshot.record.dead:
            raise DeadRowsError(name, path=self.path, dead=self.snapshot.record.dead)
        return name

    def array(self, field: str | None = None, *, dead: Literal["refuse", "include"] = "refuse") -> Any:
        """Return a whole field without a copy: ``(rows, *shape)``, read-only. A ragged field is returned as `Ragged`.

        The array stays valid after `close`. A store that can't be mapped is read into RAM.

        Raises
        ------
        DeadRowsError
            The store has deleted rows, and `dead` is not ``"include"``.
        DtypeError
            The field is bfloat16. NumPy has no such dtype.
        """
        name = self._whole(field, dead)
        if self.snapshot.record.fields[name].dtype == BFLOAT16:
            raise DtypeError(name, expected="a NumPy dtype", found=BFLOAT16, hint="use tensor() or select().to_numpy()")
        if self.snapshot.record.fields[name].ragged:
            return Ragged(self.snapshot.span(name), whole_offsets(self.snapshot, name))
        return self.snapshot.span(name)

    def tensor(self, field: str | None = None, *, dead: Literal["refuse", "include"] = "refuse") -> Any:
        """Return a whole field as a tensor without a copy: ``(rows, *shape)``. A ragged field is returned as `Ragged`.

        torch has no read-only tensors. Writes to this tensor are private: each page is copied when it is first
        written, and the files never change.

        Each call maps the field again. Read the tensor in order. For batches in random order
        `embstore.torch.EmbeddingDataset` is 6 to 27 times as fast as ``store.tensor()[indices]``.

        Raises
        ------
        DeadRowsError
            The store has deleted rows, and `dead` is not ``"include"``.
        UnknownFieldError, MissingLibraryError
        """
        name = self._whole(field, dead)
        values = as_tensor(self.snapshot.writable_copy(name), self.snapshot.record.fields[name])
        if self.snapshot.record.fields[name].ragged:
            return Ragged(values, as_tensor(whole_offsets(self.snapshot, name).copy()))
        return values

    # -- commits ------------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Move to the newest commit. Return True if it is another commit than before. Views stay valid.

        Raises
        ------
        NotAStoreError, CorruptStoreError
        """
        return self._session.refresh()

    def close(self) -> None:
        """Close the store. Arrays that it returned stay valid."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path and the position of the commit. Unpickling opens the store for reading."""
        snapshot = self.snapshot
        place, options = snapshot.folder.origin
        how = {"mapping": snapshot.mapping, "check": snapshot.check, "storage_options": options}
        return by_name("embstore:EmbeddingStore._reopened", place, tuple(snapshot.position), how)

    @classmethod
    def _reopened(cls, place: str, position: tuple[Any, ...], how: Mapping[str, Any]) -> Self:
        snapshot = open_later(place, Position(*position), **how)
        return cls(Session(snapshot, writable=False, lock_timeout=0))

    def __repr__(self) -> str:
        if self._session.closed:
            return f"<EmbeddingStore {str(self.path)!r} (closed)>"
        return f"<EmbeddingStore>\n{as_text(self._described())}"

    def _repr_html_(self) -> str:
        return html_table([("store", f"{self.path} (closed)")] if self._session.closed else self._described())

    def _described(self) -> list[tuple[str, str]]:
        return describe(self.snapshot, writable=self.writable)

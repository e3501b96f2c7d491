"""Columns that samples bring along: checked before anything is encoded, and compared on hits too."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from embstore._engine.format.arguments import function_of, mapping_of
from embstore._engine.format.record import ColumnSpec, Record, check_name
from embstore._engine.format.source_columns import SOURCE_COLUMNS, UNKNOWN_SOURCE
from embstore._engine.lazy import cached_property
from embstore._engine.read.column import Rows
from embstore._engine.write.check_input import column_values
from embstore._engine.write.plans import NO_FILL, check_columns
from embstore.errors import DtypeError, NameRefusedError, StoreChangedError
from embstore.sources.base import AnySample, naming
from embstore.store.changes import plan_columns
from embstore.store.embedding_store import EmbeddingStore

Values = Mapping[str, Any]


class SampleColumns:
    """The values of columns that samples bring along, checked and in the order of the samples.

    A sample without a value has the fill of the column.

    Parameters
    ----------
    samples : mapping of str to sample
        By key. The values are those of `Sample.columns`.
    more : callable, optional
        Returns a sample's values of further columns.

    Raises
    ------
    NameRefusedError
    """

    def __init__(
        self, samples: Mapping[str, AnySample], more: Callable[[AnySample], Mapping[str, Any]] | None = None
    ) -> None:
        self.keys = list(samples)
        found: list[Values] = [getattr(sample, "columns", None) or {} for sample in samples.values()]
        if more is not None:
            function_of("columns", more)
            for place, (key, sample) in enumerate(samples.items()):
                with naming(f"columns= of {key}"):
                    found[place] = {**found[place], **mapping_of("the values", more(sample), "column names to values")}
        names = dict.fromkeys(itertools.chain.from_iterable(found))
        for name in names:
            if check_name(name) in SOURCE_COLUMNS:
                raise NameRefusedError(name, "embed keeps what it knows of the content there")
        self._given = {name: [values.get(name) for values in found] for name in names}
        self.values: dict[str, Any] = {}

    def fit(self, record: Record | None) -> None:
        """Convert the values to the dtypes of the columns of a store, if it exists and has them.

        Raises
        ------
        ShapeError, NameRefusedError
            The store has a field of that name.
        DtypeError
            The values don't fit the dtype, or an integer or bool is missing and the column has no fill.
        """
        stored = {} if record is None else record.columns
        for name, given in self._given.items():
            if record is not None and name in record.fields:
                raise NameRefusedError(name, "it is the name of a field")
            present = [value for value in given if value is not None]
            dtype = stored[name].dtype if name in stored else None
            dtype, values = column_values(name, dtype, present, len(present))
            if len(present) < len(given):
                fill = (stored[name] if name in stored else ColumnSpec(dtype=dtype, array=name)).fill_value
                if fill is None:
                    key = self.keys[next(place for place, value in enumerate(given) if value is None)]
                    raise DtypeError(name, expected=f"{dtype} for each sample", found=f"none for {key}", hint=NO_FILL)
                values = column_values(name, dtype, [fill if v is None else v for v in given], len(given))[1]
            self.values[name] = values

    def at(self, chosen: Rows) -> dict[str, Any]:
        """Return the values of the samples at some places."""
        if len(chosen) == len(self.keys) and (np.diff(chosen) == 1).all():
            return dict(self.values)
        return {
            name: values[chosen] if isinstance(values, np.ndarray) else [values[i] for i in chosen.tolist()]
            for name, values in self.values.items()
        }

    @cached_property
    def _places(self) -> dict[str, int]:
        return {key: place for place, key in enumerate(self.keys)}

    def of(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return the values of the samples of some keys."""
        return self.at(np.fromiter((self._places[key] for key in keys), np.int64)) if self.values else {}

    def changed(self, store: EmbeddingStore, rows: Rows, *, new_rows: bool) -> tuple[str, ...]:
        """Return the columns of a store that these values change.

        Parameters
        ----------
        store : EmbeddingStore
        rows : ndarray, (n,) int64
            Row of each sample, and -1 for a sample without one.
        new_rows : bool
            Whether rows are to be added. Each column of the store then needs a value or a fill.

        Raises
        ------
        MissingKeysError, UnknownColumnError
            Rows that are given no value, and a column without a fill.
        """
        self.fit(store.snapshot.record)
        if new_rows:
            self.check_new_rows(store)
        if not self.values:
            return ()
        there = np.flatnonzero(rows >= 0)
        return plan_columns(store.snapshot, rows[there], self.at(there), {})[1]

    def check_new_rows(self, store: EmbeddingStore) -> None:
        """Check that each column of a store has a value for rows of new keys.

        Raises
        ------
        UnknownColumnError
        """
        if store.fields:
            given = {name: None for name in (*self.values, *SOURCE_COLUMNS) if name in store.columns}
            check_columns(store.snapshot.record, given, store.path)

    def write(self, store: EmbeddingStore) -> None:
        """Write the values of stored rows, and make the columns that `embed` needs, in one commit if any."""
        while True:
            seen, rows = store.snapshot.record.commit_id, store.find(self.keys)
            there = np.flatnonzero(rows >= 0)
            try:
                store.set_columns(self.at(there), store.select(rows=rows[there]), fill=UNKNOWN_SOURCE)
                return
            except StoreChangedError:  # another process replaced or deleted some of them
                store.refresh()
                if store.snapshot.record.commit_id == seen:
                    raise

"""Stores and their views: select rows.

Both classes are in one module because each returns the other. `reader`, `selected_rows` and `row_tables`
have the methods that read, and `store_writer` those that write.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.arguments import refuse_hidden, whole_number
from embstore._engine.format.keys import Key
from embstore._engine.pickles import by_name
from embstore._engine.rng import Rng, generator_of
from embstore._engine.write.session import Session
from embstore.store.filter_rows import Condition, filter_rows, live_rows_at
from embstore.store.row_tables import RowTables
from embstore.store.same_content import computed_digests
from embstore.store.split_rows import sample_rows, shared_values, split_rows
from embstore.store.store_writer import StoreWriter

logger = logging.getLogger("embstore")


class EmbeddingStore(StoreWriter):
    """Embeddings of one config, one row for each sample, found by key. Made by `embstore.open` or `Cache.open`.

    A store reads the commit at which it was opened, or that it wrote last. `refresh` moves to the newest commit.
    """

    def select(
        self,
        *,
        keys: Iterable[str | Key] | None = None,
        rows: Any = None,
        classes: Sequence[str] | str | None = None,
        where: Mapping[str, Condition] | None = None,
    ) -> View:
        """Return a lazy selection of rows. Without arguments, select all live rows.

        Parameters
        ----------
        keys : iterable of str or Key, optional
            Select the rows of these keys, in this order and with repeats.
        rows : array_like of int, (n,), optional
            Select these rows, in this order and with repeats. Not together with `keys`.
        classes : str or sequence of str, optional
            Select only rows of these classes, or those without a class by ``"_"``.
        where : mapping, optional
            A condition for each named column: a value, an iterable of values, or a function that takes the values
            ``(n,)`` and returns a mask ``(n,) bool``.

        Raises
        ------
        MissingKeysError, UnknownClassError, UnknownColumnError, IndexError
        TypeError
            A condition is a value of another type than the column, a row number is not an integer, or both `keys`
            and `rows` are given.
        """
        snapshot = self.snapshot
        if keys is not None and rows is not None:
            raise TypeError("expected keys or rows, found both")
        if keys is not None:
            chosen = self.rows_of(keys)
        elif rows is not None:
            chosen = live_rows_at(snapshot, rows)
        else:
            chosen = snapshot.live_rows
        return View(self, filter_rows(snapshot, chosen, classes, where))


class View(RowTables):
    """Rows of a store in a given order. A view holds row numbers and copies no vectors.

    NumPy, PyTorch and scikit-learn take a view as an array, with the values of `to_numpy`. polars, DuckDB and pyarrow
    take it as an Arrow stream of keys, columns and fields. Iterating a view yields its keys.

    Made by `EmbeddingStore.select`. A view stays valid while the store grows. It raises `StoreChangedError` once its
    rows were erased, or renumbered by a compaction.

    Attributes
    ----------
    store : EmbeddingStore
    rows : ndarray, (len(view),) int64
        Row numbers, read-only.
    """

    __slots__ = ()

    store: EmbeddingStore

    def __getitem__(self, places: slice | Sequence[int] | NDArray[Any] | tuple[Any, Any]) -> View:
        """Return the view of some places of this view: a slice, a list of places or a mask ``(len(view),) bool``."""
        given: Any = places
        if isinstance(given, tuple) and len(given) == 2 and given[1] is Ellipsis:  # scikit-learn's form
            given = given[0]
        refuse_hidden("places", given)
        found = given if isinstance(given, slice) else np.asarray(given)
        if not isinstance(found, slice) and (found.ndim != 1 or (found.dtype.kind not in "biu" and len(found))):
            raise TypeError(
                f"expected a slice, a list of places or a mask, found {places!r:.200}; for one row "
                f"use view.to_numpy()[i], or store[key]"
            )
        rows = self.rows[found] if isinstance(found, slice) or len(found) else self.rows[:0]
        return self._restored(self.store, rows, self._generation, self._epoch)

    def batches(self, size: int) -> Iterator[View]:
        """Yield views of `size` rows each. The last one may be smaller."""
        size = whole_number("the size of a batch", size, 1)
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def select(
        self,
        *,
        classes: Sequence[str] | str | None = None,
        where: Mapping[str, Condition] | None = None,
    ) -> View:
        """Return the view of those rows that belong to the classes and meet the conditions.

        The parameters are those of `EmbeddingStore.select`.
        """
        return View(self.store, filter_rows(self.snapshot(), self.rows, classes, where))

    def sample(self, n: int, *, rng: Rng, by: Literal["class"] | str | None = None) -> View:
        """Return the view of `n` rows drawn at random without replacement.

        Parameters
        ----------
        n : int
        rng : int or numpy.random.Generator
            A seed draws the same rows at each call.
        by : str, optional
            ``"class"`` or a column: `n` rows of each value are drawn, the values in the order of their first rows.

        Raises
        ------
        ValueError
            The view has fewer than `n` rows, or fewer of a value. The message lists these values.
        """
        generator = generator_of(rng)
        if by is None:
            return self[generator.choice(len(self), size=whole_number("n", n, 0, len(self)), replace=False)]
        return self[sample_rows(whole_number("n", n, 0), self._values_of(by), generator, by)]

    def _values_of(self, by: str) -> list[Any]:
        """Return the value of each row in a column, which "class" names as well as "class_name"."""
        values: list[Any] = self.column("class_name" if isinstance(by, str) and by == "class" else by).tolist()
        return values

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
            The share of each part. The shares sum to 1.
        rng : int or numpy.random.Generator
        by : str, optional
            ``"class"`` or a column: the rows of each value are split in these ratios. None: all rows together.
        group : str, optional
            A column, such as ``"file_id"``. Rows with the same value stay together. Otherwise augmented views of one
            recording leak from train into test. Without it, rows that `embed` made from the same content stay together.
            With it, a warning is logged if they do not.

        Returns
        -------
        dict of str to View
            Each part in the order of this view.
        """
        strata = None if by is None else self._values_of(by)
        groups = None if group is None else self.column(group).tolist()
        digests = [digest or place for place, digest in enumerate(computed_digests(self.snapshot(), self.rows))]
        places = split_rows(len(self), ratios, rng=rng, strata=strata, groups=digests if groups is None else groups)
        if groups is not None and (torn := shared_values(digests, places.values())):
            logger.warning(
                "%s: %d contents have rows in several parts of the split, since their values of %r differ",
                *(self.store.path, torn, group),
            )
        return {name: self[chosen] for name, chosen in places.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the store and the row numbers."""
        rows: Any = self.rows
        if len(rows) and (np.diff(rows) == 1).all():
            rows = (int(rows[0]), int(rows[-1]) + 1)
        return by_name("embstore:View._restored", self.store, rows, self._generation, self._epoch)

    @classmethod
    def _restored(cls, store: EmbeddingStore, rows: Any, generation: str, epoch: int) -> View:
        view = cls(store, np.arange(*rows) if isinstance(rows, tuple) else rows)
        view._generation, view._epoch = generation, epoch
        return view


def session_of(store: EmbeddingStore) -> Session:
    """Return the session of a store, for `merge` and imports, which plan their own commits."""
    return store._session

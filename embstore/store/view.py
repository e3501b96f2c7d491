"""Views: lazy selections of rows. A view is a store and a list of row numbers, never a copy of vectors."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from embstore._engine.pickles import by_name
from embstore._engine.read.column import Rows
from embstore._engine.read.read_rows import column_of
from embstore._engine.read.snapshot import Snapshot
from embstore._engine.rng import Rng, generator_of
from embstore.errors import StoreChangedError, UnknownClassError
from embstore.store.readable import ReadableStore
from embstore.store.split_rows import split_rows
from embstore.store.view_outputs import Outputs

Condition = Any


class View(Outputs):
    """Some rows of a store, in an order.

    Made by `EmbeddingStore.select`; it stays valid while the store grows, and raises
    `StoreChangedError` once its rows were erased or renumbered (by a compaction).
    """

    __slots__ = ("_epoch", "_generation", "rows", "store")

    def __init__(self, store: ReadableStore, rows: Rows) -> None:
        rows = np.asarray(rows, dtype=np.int64)
        if rows.flags.writeable:  # the caller's own, to change as they like
            rows = rows.copy()
            rows.flags.writeable = False
        self.store = store
        self.rows = rows
        record = store.snapshot.record
        self._generation = record.generation
        self._epoch = record.epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys)

    def __getitem__(self, places: slice | Sequence[int] | NDArray[Any]) -> View:
        """Return the view of some places of this one: a slice, a list of places or a mask."""
        if isinstance(places, int | np.integer | str):
            raise TypeError(
                f"a view is indexed by a slice, a list of places or a mask, found {places!r}; for one row "
                f"use view.to_numpy()[i], or store[key]"
            )
        return self._restored(self.store, self.rows[places], self._generation, self._epoch)

    def snapshot(self) -> Snapshot:
        """Return the store's commit, once it is known that the rows still mean what they did.

        Raises
        ------
        StoreChangedError
            The store was compacted, or rows of this view were erased.
        """
        snapshot = self.store.snapshot
        record = snapshot.record
        if record.generation != self._generation:
            raise StoreChangedError(
                snapshot.folder.path,
                "the store was compacted since this view was made; select() again",
                expected=self._generation,
                found=record.generation,
            )
        if record.epoch != self._epoch:
            if snapshot.is_dead(self.rows).any():
                raise StoreChangedError(
                    snapshot.folder.path,
                    "rows of this view were erased; select() again",
                    expected=self._epoch,
                    found=record.epoch,
                )
            self._epoch = record.epoch
        return snapshot

    @property
    def keys(self) -> list[str]:
        """Keys, in the view's order."""
        return self.snapshot().keys_of(self.rows)

    @property
    def file_ids(self) -> list[str]:
        """The file_id of each row."""
        return self.snapshot().file_ids_of(self.rows)

    @property
    def class_names(self) -> list[str]:
        """The class of each row."""
        return self.snapshot().class_names_of(self.rows)

    @property
    def classes(self) -> list[str]:
        """The different classes that occur, in the store's order."""
        snapshot = self.snapshot()
        codes = np.unique(snapshot.class_codes_of(self.rows)).tolist()
        return [snapshot.class_names[code] for code in codes]

    def labels(self, classes: Sequence[str]) -> NDArray[np.int64]:
        """Return each row's place in `classes`: ``(len(view),) int64``.

        Only through a given list, so that labels agree between clients and machines.

        Raises
        ------
        UnknownClassError
            A row's class is not in the list.
        """
        if len(set(classes)) != len(classes):
            raise ValueError(f"a class occurs more than once in {list(classes)!r}")
        places = {name: place for place, name in enumerate(classes)}
        snapshot = self.snapshot()
        of_code = np.array([places.get(name, -1) for name in snapshot.class_names], dtype=np.int64)
        codes = snapshot.class_codes_of(self.rows)
        labels = of_code[codes] if len(codes) else np.empty(0, np.int64)
        if len(labels) and labels.min() < 0:
            raise UnknownClassError([snapshot.class_names[code] for code in np.unique(codes[labels < 0])], classes)
        return labels

    def column(self, name: str) -> np.ndarray[Any, Any]:
        """Return a column's values: ``(len(view),)``, strings as objects.

        Raises
        ------
        UnknownColumnError
        """
        return column_of(self.snapshot(), name, self.rows)

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
    def _restored(cls, store: ReadableStore, rows: Any, generation: str, epoch: int) -> View:
        view = cls(store, np.arange(*rows) if isinstance(rows, tuple) else rows)
        view._generation, view._epoch = generation, epoch
        return view

    def __repr__(self) -> str:
        names = self.classes
        shown = ", ".join(names[:6]) + (f", … ({len(names)} classes)" if len(names) > 6 else "")
        return f"<View of {len(self):,} of {len(self.store):,} rows of {str(self.store.path)!r}: {shown or 'no rows'}>"

    def _repr_html_(self) -> str:
        return f"<code>{html.escape(repr(self))}</code>"


def filter_rows(
    snapshot: Snapshot,
    rows: Rows,
    classes: Sequence[str] | str | None,
    where: Mapping[str, Condition] | None,
) -> Rows:
    """Return those of `rows` that are of the classes and meet the conditions, in their order."""
    if classes is not None:
        wanted = [classes] if isinstance(classes, str) else list(classes)
        codes = {name: code for code, name in enumerate(snapshot.class_names)}
        if unknown := [name for name in wanted if name not in codes]:
            raise UnknownClassError(unknown, codes)
        stored = snapshot.class_codes_of(rows)
        mask = np.zeros(len(codes), dtype=bool)
        mask[[codes[name] for name in wanted]] = True
        rows = rows[mask[stored]]
    for name, condition in (where or {}).items():
        values = column_of(snapshot, name, rows)
        rows = rows[_meets(name, values, condition)]
    return rows


def _meets(name: str, values: np.ndarray[Any, Any], condition: Condition) -> NDArray[np.bool_]:
    """Tell which values meet a condition: equal to a scalar, in a list, or by a function's mask."""
    if isinstance(condition, Callable):  # type: ignore[arg-type]
        mask = np.asarray(condition(values))
        if mask.shape != values.shape or mask.dtype != bool:
            raise ValueError(
                f"the condition on {name!r} should give a mask of {len(values)} bools, found {mask.dtype} {mask.shape}"
            )
        return mask
    if isinstance(condition, list | tuple | set | frozenset | np.ndarray):
        options = list(condition)
        mask = np.zeros(len(values), dtype=bool)
        for option in options:
            mask |= np.asarray(values == option, dtype=bool)
        return mask
    return np.asarray(values == condition, dtype=bool)

"""Colours and markers of the points of a plot: by group, or on a continuous scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embstore._engine.read.read_rows import column_of
from embstore._outputs.vectors import Vectors, class_places

_FEW_NUMBERS: Final = 20
"""A column with up to so many different integers (such as folds) is groups. More get a continuous scale."""

COLOURS: Final = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd"),
    *("#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"),
)
_MARKERS: Final = (("o", "circle"), ("^", "triangle-up"), ("s", "square"), ("D", "diamond"), ("X", "x"))
"""Names in matplotlib and plotly. When the colours are used up, they repeat with the next marker."""

_MOST_NAMED: Final = len(COLOURS) * len(_MARKERS)
"""Number of distinct styles, exactly enough for the classes of ESC-50. Of more groups the smaller ones share one."""

_OTHERS: Final = ("#d3d3d3", _MARKERS[0])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shades:
    """Values that set the colour of points.

    Attributes
    ----------
    name : str
    values : ndarray, (n,)
        Places in `groups`, or numbers if `groups` is None.
    groups : list of str, optional
        Names. If there are fewer than `count`, the first one stands for all unnamed groups.
    count : int
        The number of groups that occur.
    """

    name: str
    values: NDArray[Any]
    groups: list[str] | None = None
    count: int = 0

    @property
    def folded(self) -> bool:
        """True if the first group stands for several groups."""
        return self.groups is not None and len(self.groups) < self.count

    def styles(self) -> list[tuple[str, tuple[str, str]]]:
        """Return the colour and the marker of each group."""
        named = range(len(self.groups or ()) - self.folded)
        own = [(COLOURS[i % len(COLOURS)], _MARKERS[i // len(COLOURS)]) for i in named]
        return [_OTHERS, *own] if self.folded else own

    def title(self, listed: int) -> str:
        """Return the title of a legend, with the number of listed groups unless it lists all."""
        return self.name if listed == self.count else f"{self.name}: {listed} of {self.count}"


def shades_of(vectors: Vectors, color: str) -> Shades:
    """Return the values that colour points: classes in the store's order, or a column."""
    snapshot, rows = vectors.snapshot, vectors.rows
    if color == "class_name":
        groups, places = class_places(snapshot, rows)
        return _grouped(color, places, groups)
    column = column_of(snapshot, color, rows)
    found: Sequence[Any] | None = None
    if column.dtype.kind in "Ob":
        found = sorted(set(column.tolist()))
    elif column.dtype.kind in "iu" and len(numbers := np.unique(column)) <= _FEW_NUMBERS:
        found = numbers.tolist()
    if found is None:
        return Shades(name=color, values=column.astype(np.float64))
    place_of = {value: place for place, value in enumerate(found)}
    values = np.array([place_of[value] for value in column.tolist()], dtype=np.int64)
    return _grouped(color, values, [str(value) for value in found])


def _grouped(name: str, values: NDArray[Any], groups: list[str]) -> Shades:
    """Name the largest groups. The others become one group, which is first so that it is drawn below."""
    count = len(groups)
    if count > _MOST_NAMED:
        largest = np.sort(np.argsort(-np.bincount(values), kind="stable")[:_MOST_NAMED])
        places = np.zeros(count, dtype=np.int64)
        places[largest] = np.arange(1, len(largest) + 1)
        values = places[values]
        groups = [f"{count - len(largest):,} others", *(groups[i] for i in largest.tolist())]
    return Shades(name=name, values=values, groups=groups, count=count)

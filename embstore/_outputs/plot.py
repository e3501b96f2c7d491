"""What is on a plot of vectors: which of them, where, in which colours, under which title. `drawing` draws it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from embstore._engine.io.durable import replacing
from embstore._engine.read.read_rows import column_of
from embstore._outputs.drawing import PAGES, PICTURES, Scene, Shades, as_figure, write_page, write_picture
from embstore._outputs.projection import Method, Projection, project_vectors
from embstore._outputs.vectors import Vectors
from embstore.errors import EmptyViewError

_FEW_NUMBERS: Final = 20
"""Different whole numbers up to which they are taken for categories, as folds are."""


def plot_vectors(
    vectors: Vectors,
    file: Path | None,
    *,
    color: str | None,
    method: Method,
    max_points: int,
    rng: np.random.Generator,
) -> Any:
    """Plot vectors into a file, or return plotly's figure; see `View.plot`."""
    if file is not None and (suffix := file.suffix.lower()) not in (*PAGES, *PICTURES):
        raise ValueError(f"{file}: expected a file that ends in {', '.join((*PAGES, *PICTURES))}")
    if max_points < 1:
        raise ValueError(f"expected max_points of at least 1, found {max_points}")
    if not len(vectors):
        raise EmptyViewError(vectors.snapshot.folder.path, "plot")
    total = len(vectors)
    if total > max_points:
        vectors = replace(vectors, rows=vectors.rows[np.sort(rng.choice(total, size=max_points, replace=False))])
    scene = _scene(vectors, total, color, project_vectors(vectors, method, 2, rng))
    if file is None:
        return as_figure(scene)
    with replacing(file) as partial:
        if suffix in PAGES:
            write_page(scene, partial)
        else:
            write_picture(scene, partial, suffix)
    return file


def _scene(vectors: Vectors, total: int, color: str | None, projection: Projection) -> Scene:
    snapshot, rows = vectors.snapshot, vectors.rows
    shown = f"{total:,} rows" if len(rows) == total else f"{len(rows):,} of {total:,} rows, drawn at random"
    names: list[str] = [f"{projection.method.upper()} {i}" for i in (1, 2)]
    if projection.explained is not None:
        shares = projection.explained.tolist()
        names = [f"{name} ({share:.1%} of the variance)" for name, share in zip(names, shares, strict=True)]
    columns = {name: column_of(snapshot, name, rows).tolist() for name in snapshot.record.columns}
    classes = snapshot.class_names_of(rows)
    return Scene(
        title=f"{snapshot.folder.path.name}, {vectors.field}: {shown}",
        axes=names,
        points=projection.points,
        notes={"key": snapshot.keys_of(rows), "class_name": classes, **columns},
        shades=None if color is None else _shades(vectors, color),
    )


def _shades(vectors: Vectors, color: str) -> Shades:
    """Return what points are coloured by: classes in the store's order, or a column."""
    snapshot, rows = vectors.snapshot, vectors.rows
    if color == "class_name":
        codes, values = np.unique(snapshot.class_codes_of(rows), return_inverse=True)
        return Shades(name=color, values=values, categories=[snapshot.class_names[code] for code in codes.tolist()])
    column = column_of(snapshot, color, rows)
    found: Sequence[Any] | None = None
    if column.dtype.kind in "Ob":
        found = sorted(set(column.tolist()))
    elif column.dtype.kind in "iu" and len(numbers := np.unique(column)) <= _FEW_NUMBERS:
        found = numbers.tolist()
    if found is None:
        return Shades(name=color, values=column)
    places = {value: place for place, value in enumerate(found)}
    values = np.array([places[value] for value in column.tolist()], dtype=np.int64)
    return Shades(name=color, values=values, categories=[str(value) for value in found])

"""Centroids of classes, and distances of rows to centroids and between centroids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from embstore._engine.lazy import imported
from embstore._outputs.vectors import class_places
from embstore.store.as_view import as_view
from embstore.store.embedding_store import EmbeddingStore, View

if TYPE_CHECKING:
    import pandas as pd

Distance = Literal["cosine", "euclidean"]
Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Centroids:
    """The mean row of each class.

    Attributes
    ----------
    class_names : list of str
        In the store's order.
    counts : ndarray, (classes,) int64
        The number of rows of each class.
    values : ndarray, (classes, dim) float64
        The mean of the flattened rows.
    """

    class_names: list[str]
    counts: NDArray[np.int64]
    values: Doubles

    def to_pandas(self) -> pd.DataFrame:
        """Return a DataFrame with one row for each class and one column for each dimension."""
        pandas = imported("pandas", "analysis", "for a DataFrame")
        return pandas.DataFrame(self.values, index=pandas.Index(self.class_names, name="class_name", dtype=object))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Distances:
    """Distances of rows to the centroid of their class, and between centroids.

    Attributes
    ----------
    metric : str
    class_names : list of str
    counts : ndarray, (classes,) int64
    within : ndarray, (classes,) float64
        The mean distance of the rows of a class to its centroid.
    between : ndarray, (classes, classes) float64
        The distance between each two centroids.
    """

    metric: str
    class_names: list[str]
    counts: NDArray[np.int64]
    within: Doubles
    between: Doubles

    def to_pandas(self) -> pd.DataFrame:
        """Return one row for each class: ``count``, ``within``, the ``nearest`` other class, and ``to_nearest``."""
        pandas = imported("pandas", "analysis", "for a DataFrame")
        others = self.between + np.diag(np.full(len(self.between), np.inf))
        alone = len(others) < 2
        nearest = np.zeros(len(others), np.int64) if alone else others.argmin(axis=1)
        data = {
            "count": self.counts,
            "within": self.within,
            "nearest": [None if alone else self.class_names[place] for place in nearest.tolist()],
            "to_nearest": np.full(len(others), np.nan) if alone else others.min(axis=1),
        }
        return pandas.DataFrame(data, index=pandas.Index(self.class_names, name="class_name", dtype=object))


def centroids(view: View | EmbeddingStore, field: str | None = None) -> Centroids:
    """Return the mean row of each class. Sums are float64, and rows are read a block at a time.

    Raises
    ------
    NonFiniteError, ShapeError, UnknownFieldError

    Examples
    --------
    >>> import embstore, tempfile
    >>> store = embstore.open(tempfile.mkdtemp() + "/demo.zarr", "w-", config={"encoder": "demo"})
    >>> _ = store.append(["a:dog", "b:cat", "c:dog"], np.array([[0, 2], [5, 5], [2, 0]], np.float32))
    >>> means = centroids(store.select())
    >>> means.class_names, means.values.tolist()
    (['dog', 'cat'], [[1.0, 1.0], [5.0, 5.0]])
    """
    view = as_view(view)
    vectors = view.vectors(field)
    names, places = class_places(vectors.snapshot, vectors.rows)
    counts = np.bincount(places, minlength=len(names))
    sums = np.zeros((len(names), vectors.dim))
    exact = np.float32 if vectors.spec.row_nbytes <= 4 * vectors.dim and vectors.spec.floating else np.float64
    for start, block in vectors.finite_blocks(dtype=exact):
        at = places[start : start + len(block)]
        for place in np.unique(at).tolist():  # NumPy's reduceat is eight times slower
            sums[place] += block[at == place].sum(axis=0, dtype=np.float64)
    return Centroids(class_names=names, counts=counts, values=sums / np.maximum(counts, 1)[:, None])


def distances(view: View | EmbeddingStore, field: str | None = None, *, metric: Distance = "euclidean") -> Distances:
    """Return the distances of rows to the centroid of their class, and between centroids.

    With the centroids ``m_c``, ``within[c]`` is the mean of ``d(x, m_c)`` over the rows ``x`` of class ``c``, and
    ``between[c, e]`` is ``d(m_c, m_e)``, where ``d(a, b)`` is ``|a - b|`` (``"euclidean"``) or ``1 - a.b / |a||b|``
    (``"cosine"``, and 1 for a zero vector).

    Raises
    ------
    NonFiniteError, ShapeError, UnknownFieldError
    """
    means, _, _, within = around_centroids(as_view(view), field, metric)
    names = means.class_names
    between = np.empty((0, 0))
    if names:
        between = np.stack([_distance(mean[None], means.values, metric) for mean in means.values])
    return Distances(metric=metric, class_names=names, counts=means.counts, within=within, between=between)


def around_centroids(
    view: View, field: str | None, metric: Distance
) -> tuple[Centroids, NDArray[np.int64], Doubles, Doubles]:
    """Return centroids, and the distance of each row to the centroid of its class.

    Returns
    -------
    means : Centroids
    places : ndarray, (len(view),) int64
        The place of each row's class in `means`.
    own : ndarray, (len(view),) float64
        The distance of each row to its class's centroid.
    within : ndarray, (classes,) float64
        The mean of these distances for each class.
    """
    if metric not in ("cosine", "euclidean"):
        raise ValueError(f"expected the metric cosine or euclidean, found {metric!r}")
    means, vectors = centroids(view, field), view.vectors(field)
    _, places = class_places(vectors.snapshot, vectors.rows)
    own = np.empty(len(vectors))
    for start, block in vectors.finite_blocks(dtype=np.float64):
        at = slice(start, start + len(block))
        own[at] = _distance(block, means.values[places[at]], metric)
    within = np.bincount(places, weights=own, minlength=len(means.counts)) / np.maximum(means.counts, 1)
    return means, places, own, within


def _distance(a: NDArray[Any], b: Doubles, metric: Distance) -> Doubles:
    """Return the distance between corresponding rows: ``(n,) float64``."""
    if metric == "euclidean":
        difference = a - b
        far: Doubles = np.sqrt(np.einsum("ij,ij->i", difference, difference))
        return far
    dots = np.einsum("ij,ij->i", np.broadcast_to(a, b.shape), b)
    lengths = np.sqrt(np.einsum("ij,ij->i", a, a) * np.einsum("ij,ij->i", b, b))
    # Rounding can make the distance of a vector to itself negative.
    apart: Doubles = np.maximum(1 - np.divide(dots, lengths, out=np.zeros_like(dots), where=lengths > 0), 0)
    return apart

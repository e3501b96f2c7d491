"""Exact nearest neighbours, a block of rows at a time. RAM holds neither the whole field nor all scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.arguments import check_choice, whole_number
from embstore._engine.format.keys import Key, split_text
from embstore._engine.lazy import imported
from embstore._engine.notebook import html_table
from embstore._engine.read.column import Rows
from embstore._engine.read.dtypes import as_rows, converted
from embstore._outputs.vectors import Vectors
from embstore.errors import NonFiniteError, ShapeError

if TYPE_CHECKING:
    import pandas as pd

Metric = Literal["cosine", "dot", "euclidean"]

_BLOCK_BYTES: Final = 64 * 2**20
_COPIED_BYTES: Final = 16 * 2**20
"""Limits of a block's scores and of its vectors: the first where vectors are mapped, the second where they are copied.
Each product is a barrier for BLAS's threads. On a machine with six times as many runnable threads as cores, small
blocks took 1.5 times the processor time of large ones."""

_LEAST_NORM: Final = 1e-12
_NOTHING_NEAR: Final = "nothing is near to that"


@dataclass(frozen=True, slots=True)
class Neighbors:
    """Nearest rows, the nearest first. Of equally near rows the first in the view comes first.

    Attributes
    ----------
    keys : list of str, or list of lists
        One list for one query, one list for each query for many.
    scores : ndarray, (k,) or (n, k) float32
        Cosine similarity or dot product (higher is nearer), or Euclidean distance (lower is nearer).
    rows : ndarray, (k,) or (n, k) int64
    queries : list of str, optional
        The query keys, if the queries were keys.
    """

    keys: Any
    scores: NDArray[np.float32]
    rows: Rows
    queries: list[str] | None = None

    def to_pandas(self) -> pd.DataFrame:
        """Return a table with one row for each neighbour of each query.

        Returns
        -------
        DataFrame
            Columns ``query`` (its key, or its number), ``rank`` (from 1), ``key``, ``file_id``, ``class_name`` and
            ``score``.
        """
        frame = imported("pandas", "analysis", "for tables")
        data = self._columns()
        parts = [split_text(key) for key in data["key"]]
        scores = data.pop("score")
        file_ids, class_names = [part[0] for part in parts], [part[1] for part in parts]
        return frame.DataFrame({**data, "file_id": file_ids, "class_name": class_names, "score": scores})

    def _columns(self) -> dict[str, Any]:
        """Return a row for each neighbour of each query: query, rank, key and score."""
        scores = np.atleast_2d(self.scores)
        count, width = scores.shape
        return {
            "query": [query for query in self.queries or range(count) for _ in range(width)],
            "rank": np.tile(np.arange(1, width + 1), count),
            "key": self.keys if self.scores.ndim == 1 else [key for listed in self.keys for key in listed],
            "score": scores.reshape(-1),
        }

    def _repr_html_(self) -> str:
        data = self._columns()
        data["score"] = [f"{score:.4g}" for score in data["score"].tolist()]
        return html_table(list(zip(*data.values(), strict=True)), header=data)


def neighbors_of(
    vectors: Vectors,
    query: Any,
    k: int,
    *,
    metric: Metric,
    itself: Literal["exclude", "include"],
    rows_of: Callable[[list[Any]], Rows],
) -> Neighbors:
    """Find the vectors nearest to vectors or keys, as `View.nearest` does. `rows_of` returns the rows of keys."""
    check_choice("itself", itself, ("exclude", "include"))
    own: Rows | None = None
    if (keys := _as_keys(query)) is None:
        given = _as_queries(query, vectors.dim)
    else:
        own = rows_of(keys)
        keys = vectors.snapshot.keys_of(own)  # as they are stored: a query may be text of a subclass
        given = replace(vectors, rows=own).read(0, len(own))
        if len(bad := np.flatnonzero(~np.isfinite(given).all(axis=1))):
            raise NonFiniteError(vectors.field, [keys[place] for place in bad], hint=_NOTHING_NEAR)
        given = given[0] if isinstance(query, str | Key) else given
        own = own if itself == "exclude" else None
    scores, rows = nearest_rows(vectors, np.atleast_2d(given), k, metric=metric, left_out=own)
    texts = vectors.snapshot.keys_of(rows.reshape(-1))
    if given.ndim == 1:
        return Neighbors(texts, scores[0], rows[0], keys)
    width = rows.shape[1]
    return Neighbors([texts[i * width : (i + 1) * width] for i in range(len(rows))], scores, rows, keys)


def _as_keys(query: Any) -> list[Any] | None:
    """Return the keys of a query, or None for a query of numbers."""
    if isinstance(query, str | Key):
        return [str(Key.parse(query))]
    if isinstance(query, list | tuple) or getattr(getattr(query, "dtype", None), "kind", "") in ("O", "U", "T"):
        items = list(query)
        if all(isinstance(item, str | Key) for item in items):
            return [str(Key.parse(item)) for item in items]
    return None


def _as_queries(query: Any, dim: int) -> NDArray[np.float32]:
    """Return finite queries as an array, ``(dim,)`` or ``(n, dim) float32``.

    Raises
    ------
    ShapeError
        The dimension differs from that of the rows.
    NonFiniteError
        A query has NaN or infinity.
    """
    found, dtype = as_rows(query, "query")
    if found.dtype.kind not in "biuf":
        raise ShapeError("query", expected="vectors, or keys of the store", found=dtype)
    given = converted(found, dtype, "float32")
    if given.ndim not in (1, 2):
        raise ShapeError("query", expected="(dim,) or (n, dim)", found=given.shape)
    if given.shape[-1] != dim:
        raise ShapeError("query", expected=f"dimension {dim}", found=f"dimension {given.shape[-1]}")
    if not np.isfinite(given).all():
        raise NonFiniteError("query", [], hint=_NOTHING_NEAR)
    return given


def norms(block: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the length of each vector, at least 1e-12 (no division by zero): ``(n,) float32``."""
    lengths: NDArray[np.float32] = np.maximum(np.sqrt(np.vecdot(block, block)), _LEAST_NORM)
    return lengths


def nearest_rows(
    vectors: Vectors,
    queries: NDArray[np.float32],
    k: int,
    *,
    metric: Metric,
    left_out: Rows | None = None,
) -> tuple[NDArray[np.float32], Rows]:
    """Find the `k` vectors nearest to each query.

    Parameters
    ----------
    vectors : Vectors
    queries : ndarray, (n, dim) float32
    k : int
    metric : {"cosine", "dot", "euclidean"}
    left_out : ndarray, (n,) int64, optional
        For each query one row that is excluded from its neighbours.

    Returns
    -------
    scores : ndarray, (n, k) float32
        The nearest first. Rows with NaN come last, at infinite distance.
    rows : ndarray, (n, k) int64
        Fewer than `k` columns if any query has fewer neighbours.

    Raises
    ------
    ValueError
        `k` is below 1, or the metric is unknown.
    """
    k = whole_number("k", k, 1)
    check_choice("metric", metric, get_args(Metric))
    count, k = len(queries), min(k, len(vectors))
    if not count or not k:
        return np.empty((count, k), dtype=np.float32), np.empty((count, k), dtype=np.int64)
    if metric == "cosine":
        queries = queries / norms(queries)[:, None]
    best = _Best(count, k)
    most = _COPIED_BYTES if vectors.copied else _BLOCK_BYTES
    for start, block in vectors.blocks(max(1, most // (4 * max(count, vectors.dim)))):
        scores = _scores(queries, block, metric)
        rows = vectors.rows[start : start + len(block)]
        best.add(scores, start, None if left_out is None else left_out[:, None] == rows)
    scores, found = best.found()
    return np.sqrt(np.maximum(-scores, 0)) if metric == "euclidean" else scores, vectors.rows[found]


class _Best:
    """The best rows of each query so far, in order. Free places have the score NaN."""

    def __init__(self, queries: int, k: int) -> None:
        self.k = k
        self.scores = np.full((queries, k), np.nan, dtype=np.float32)
        self.places = np.full((queries, k), -1, dtype=np.int64)
        self.full = False

    def add(self, scores: NDArray[np.float32], start: int, left_out: NDArray[np.bool_] | None) -> None:
        """Merge the scores ``(queries, rows)`` of the block that begins at the place `start`."""
        if not self.full:
            np.copyto(scores, -np.inf, where=np.isnan(scores))
        if left_out is not None:
            scores[left_out] = np.nan  # NaN is neither above nor equal to any threshold
        # Once there are k, few scores of a block are better than all k. The others need no sorting.
        mask = scores > self.scores[:, -1:] if self.full else scores >= self._kth(scores)
        if mask.any():
            self._merge(scores, mask, start)

    def _kth(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the k-th best score of a block for each query: ``(queries, 1)``."""
        if scores.shape[1] <= self.k:
            return np.full((len(scores), 1), -np.inf, dtype=np.float32)
        kth = -np.partition(-scores, self.k - 1, axis=1)[:, self.k - 1 : self.k]
        return np.where(np.isnan(kth), np.float32(-np.inf), kth)

    def _merge(self, scores: NDArray[np.float32], mask: NDArray[np.bool_], start: int) -> None:
        queries, places = np.nonzero(mask)
        counts = np.bincount(queries, minlength=len(scores))
        slots = self.k + np.arange(len(queries)) - (np.cumsum(counts) - counts)[queries]
        room = (0, 0), (0, int(counts.max()))
        merged = np.pad(self.scores, room, constant_values=np.nan)
        found = np.pad(self.places, room, constant_values=-1)
        merged[queries, slots] = scores[queries, places]
        found[queries, slots] = places + start
        # A stable sort, and blocks come in order, so of equal scores the first stays first. NaN goes last.
        order = np.argsort(-merged, axis=1, kind="stable")[:, : self.k]
        self.scores, self.places = np.take_along_axis(merged, order, 1), np.take_along_axis(found, order, 1)
        self.full = not np.isnan(self.scores[:, -1]).any()

    def found(self) -> tuple[NDArray[np.float32], Rows]:
        """Return scores and places, as many as every query has: both ``(queries, width)``."""
        width = int((self.places >= 0).sum(axis=1).min())
        return self.scores[:, :width], self.places[:, :width]


def _scores(queries: NDArray[np.float32], block: NDArray[np.float32], metric: Metric) -> NDArray[np.float32]:
    """Return the score of each row of a block for each query: ``(queries, rows)``. Higher is nearer."""
    with np.errstate(invalid="ignore", over="ignore"):  # rows may hold infinity if their field allows it
        if metric == "euclidean":
            # These are differences of squares. Measured from a query, they don't cancel out far from zero.
            origin = queries[0]
            queries, block = queries - origin, block - origin
        dot: NDArray[np.float32] = queries @ block.T
        if metric == "dot":
            return dot
        if metric == "cosine":
            dot /= norms(block)
            return dot
        dot *= 2
        dot -= np.vecdot(block, block) + np.vecdot(queries, queries)[:, None]
        return dot

"""Exact nearest neighbours, a block of rows at a time: the whole column is never in RAM. No I/O of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from embstore.errors import NonFiniteError, ShapeError

__all__ = ["Neighbors", "nearest_rows"]

_BLOCK_BYTES: Final = 16 * 2**20

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Neighbors:
    """Nearest rows, the nearest first.

    Attributes
    ----------
    keys : list of str, or list of lists
        One list for one query, a list a query for many.
    scores : ndarray, (k,) or (n, k) float32
        Cosine similarity or dot product (higher is nearer), or Euclidean distance (lower is nearer).
    rows : ndarray, (k,) or (n, k) int64
    """

    keys: Any
    scores: NDArray[np.float32]
    rows: Rows


def nearest_rows(
    read: Callable[[Rows], np.ndarray[Any, Any]],
    rows: Rows,
    query: Any,
    k: int,
    *,
    dim: int,
    metric: Literal["cosine", "dot", "euclidean"],
    keys_of: Callable[[Rows], list[str]],
) -> Neighbors:
    """Search `rows`, whose vectors `read` gives, for the `k` nearest to each query.

    Raises
    ------
    ShapeError
        A query of another dimension than the rows.
    NonFiniteError
        A query with NaN or infinity.
    ValueError
        `k` below 1, or an unknown metric.
    """
    if k < 1:
        raise ValueError(f"expected k of at least 1, found {k}")
    if metric not in ("cosine", "dot", "euclidean"):
        raise ValueError(f"expected the metric cosine, dot or euclidean, found {metric!r}")
    given = np.asarray(query.detach().cpu() if hasattr(query, "detach") else query, dtype=np.float32)
    queries = np.atleast_2d(given)
    if given.ndim not in (1, 2):
        raise ShapeError("query", expected="(dim,) or (n, dim)", found=given.shape)
    if queries.shape[1] != dim:
        raise ShapeError("query", expected=f"dimension {dim}", found=f"dimension {queries.shape[1]}")
    if not np.isfinite(queries).all():
        raise NonFiniteError("query", [])
    if metric == "cosine":
        queries = queries / np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-12)

    best = np.empty((len(queries), 0), dtype=np.float32)
    found = np.empty((len(queries), 0), dtype=np.int64)
    for block_rows in _blocks(rows, queries):
        block = read(block_rows).astype(np.float32, copy=False)
        best = np.concatenate([best, _scores(queries, block, metric)], axis=1)
        found = np.concatenate([found, np.broadcast_to(block_rows, (len(queries), len(block_rows)))], axis=1)
        if best.shape[1] > k:
            keep = np.argpartition(-best, k - 1, axis=1)[:, :k]
            best, found = np.take_along_axis(best, keep, 1), np.take_along_axis(found, keep, 1)
    order = np.argsort(-best, axis=1, kind="stable")
    best, found = np.take_along_axis(best, order, 1), np.take_along_axis(found, order, 1)
    scores = np.sqrt(np.maximum(-best, 0)) if metric == "euclidean" else best
    texts = keys_of(found.reshape(-1))
    width = found.shape[1]
    keys = [texts[i * width : (i + 1) * width] for i in range(len(queries))]
    if given.ndim == 1:
        return Neighbors(keys[0], scores[0], found[0])
    return Neighbors(keys, scores, found)


def _blocks(rows: Rows, queries: NDArray[np.float32]) -> list[Rows]:
    """Cut rows into blocks whose vectors, and whose scores, stay small."""
    step = max(1, _BLOCK_BYTES // (4 * max(queries.shape[1], len(queries), 1)))
    return [rows[start : start + step] for start in range(0, len(rows), step)]


def _scores(queries: NDArray[np.float32], block: NDArray[np.float32], metric: str) -> NDArray[np.float32]:
    """Score each row of a block for each query, higher is nearer: ``(queries, rows)``."""
    if metric == "euclidean":
        # Distances are differences of squares here. Measured from a query, they don't cancel out far from zero.
        origin = queries[0]
        queries, block = queries - origin, block - origin
    dot: NDArray[np.float32] = queries @ block.T
    if metric == "dot":
        return dot
    squares = np.einsum("ij,ij->i", block, block)
    if metric == "cosine":
        dot /= np.maximum(np.sqrt(squares), 1e-12)
        return dot
    dot *= 2
    dot -= squares + np.einsum("ij,ij->i", queries, queries)[:, None]
    return dot

"""Outliers: rows far from the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.arguments import whole_number
from embstore._engine.lazy import imported
from embstore._outputs.neighbors import nearest_rows
from embstore.analysis.classes import Distance, around_centroids
from embstore.store.as_view import as_view
from embstore.store.embedding_store import EmbeddingStore, View

if TYPE_CHECKING:
    import pandas as pd

_ASKED_AT_ONCE: Final = 1_024


def outliers(
    view: View | EmbeddingStore,
    n: int = 20,
    *,
    method: Literal["centroid", "neighbors"] = "centroid",
    k: int = 10,
    metric: Distance = "cosine",
    field: str | None = None,
) -> pd.DataFrame:
    """List the `n` rows with the highest outlier scores.

    ``"centroid"`` scores a row by ``d(x, m_c) / within[c]``: its distance to the centroid of its class, divided by the
    mean distance in that class (see `distances`). So a class with a wide spread does not take all places. A class of
    one row has no outliers. ``"neighbors"`` scores a row by the mean distance to the `k` nearest rows of the view of
    any class (the weight of Angiulli and Pizzuti, PKDD 2002, divided by k): a matrix product of the view with itself.

    Parameters
    ----------
    view : View or EmbeddingStore
    n : int
    method : {"centroid", "neighbors"}
    k : int
        The number of neighbours. A smaller view has fewer.
    metric : {"cosine", "euclidean"}
    field : str, optional

    Returns
    -------
    DataFrame
        Columns ``key``, ``class_name``, ``distance`` and ``score``, the highest score first.

    Raises
    ------
    NonFiniteError, ShapeError, UnknownFieldError, MissingLibraryError
    """
    view = as_view(view)
    if method not in ("centroid", "neighbors"):
        raise ValueError(f"expected the method centroid or neighbors, found {method!r}")
    if metric not in ("cosine", "euclidean"):
        raise ValueError(f"expected the metric cosine or euclidean, found {metric!r}")
    n, k = whole_number("n", n, 1), whole_number("k", k, 1)
    pandas = imported("pandas", "analysis", "for a DataFrame")
    if method == "neighbors":
        distance = score = _to_neighbors(view, field, k, metric)
    else:
        means, places, distance, within = around_centroids(view, field, metric)
        usual = within[places]
        score = np.divide(distance, usual, out=np.zeros_like(distance), where=(usual > 0) & (means.counts[places] > 1))
    chosen = np.argsort(-score, kind="stable")[:n]
    listed = view[chosen]
    return pandas.DataFrame(
        {
            "key": listed.keys,
            "class_name": listed.class_names,
            "distance": distance[chosen],
            "score": score[chosen],
        }
    )


def _to_neighbors(view: View, field: str | None, k: int, metric: Distance) -> NDArray[np.float64]:
    """Return the mean distance of each row to the `k` nearest others: ``(len(view),) float64``."""
    vectors = view.vectors(field)
    found = np.zeros(len(vectors))
    for start, queries in vectors.finite_blocks(_ASKED_AT_ONCE):
        own = vectors.rows[start : start + len(queries)]
        scores, _ = nearest_rows(vectors, queries, k, metric=metric, left_out=own)
        far = 1 - scores.astype(np.float64) if metric == "cosine" else scores.astype(np.float64)
        if far.shape[1]:  # a single row has no neighbours
            found[start : start + len(queries)] = np.maximum(far, 0).mean(axis=1)
    return found

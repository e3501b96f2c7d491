"""Near duplicates: pairs of rows with a high cosine similarity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from embstore._engine.lazy import imported
from embstore._outputs.neighbors import norms
from embstore._outputs.vectors import class_places
from embstore.errors import TooManyPairsError
from embstore.store.as_view import as_view
from embstore.store.embedding_store import EmbeddingStore, View

if TYPE_CHECKING:
    import pandas as pd

_BLOCK_ROWS: Final = 4_096
_BLOCK_BYTES: Final = 128 * 2**20
"""Limits of each factor of a matrix product: enough rows for an efficient product, and 64 MiB of scores."""

_TINY: Final = np.finfo(np.float64).tiny

Places = NDArray[np.int64]
_NONE: Final[Places] = np.empty(0, dtype=np.int64)


def duplicates(
    view: View | EmbeddingStore,
    threshold: float = 0.99,
    *,
    across_classes: bool = False,
    field: str | None = None,
    most: int = 1_000_000,
) -> pd.DataFrame:
    """List pairs of rows whose cosine similarity is at least `threshold`.

    Every row is compared with every other row in blocks: half a matrix product of the view with itself. A zero vector
    has no direction, and is in no pair.

    Parameters
    ----------
    view : View or EmbeddingStore
        A row that occurs several times in the view is not a duplicate of itself.
    threshold : float
        Above 0, at most 1.
    across_classes : bool
        List only pairs of different classes, which may be wrong labels.
    field : str, optional
    most : int
        The largest number of pairs. n equal rows have about n²/2 pairs.

    Returns
    -------
    DataFrame
        Columns ``key_a``, ``key_b``, ``class_a``, ``class_b`` and ``score``, the highest score first.

    Raises
    ------
    TooManyPairsError
        There are more than `most` pairs.
    NonFiniteError, ShapeError, UnknownFieldError, MissingLibraryError
    ValueError
        `threshold` is not above 0 and at most 1.

    Examples
    --------
    >>> import embstore, tempfile
    >>> store = embstore.open(tempfile.mkdtemp() + "/demo.zarr", "w-", config={"encoder": "demo"})
    >>> _ = store.append(["a:dog", "b:cat", "c:dog"], np.array([[3, 4], [6, 8], [4, -3]], np.float32))
    >>> duplicates(store.select()).to_dict("records")
    [{'key_a': 'a:dog', 'key_b': 'b:cat', 'class_a': 'dog', 'class_b': 'cat', 'score': 1.0}]
    """
    view = as_view(view)
    if not 0 < threshold <= 1:
        raise ValueError(f"expected a threshold above 0 and up to 1, found {threshold}")
    pandas = imported("pandas", "analysis", "for a DataFrame")
    vectors = view.vectors(field)
    _, classes = class_places(vectors.snapshot, vectors.rows)
    step = max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // (4 * vectors.dim)))
    found: list[tuple[Places, Places, NDArray[np.float64]]] = []
    count = 0
    for start, left in vectors.finite_blocks(step):
        for other in range(start, len(vectors), step):
            right = left if other == start else vectors.read(other, min(other + step, len(vectors)))
            a, b, scores = _alike(left, right, threshold)
            a, b = a + start, b + other
            keep = (a < b) & (vectors.rows[a] != vectors.rows[b])
            if across_classes:
                keep &= classes[a] != classes[b]
            found.append((a[keep], b[keep], scores[keep]))
            count += int(keep.sum())
            if count > most:
                raise TooManyPairsError(threshold, most)
    parts = zip(*found, strict=True) if found else ([_NONE], [_NONE], [np.empty(0)])
    a, b, scores = (np.concatenate(part) for part in parts)
    order = np.argsort(-scores, kind="stable")
    first, second = view[a[order]], view[b[order]]
    return pandas.DataFrame(
        {
            "key_a": first.keys,
            "key_b": second.keys,
            "class_a": first.class_names,
            "class_b": second.class_names,
            "score": scores[order],
        }
    )


def _alike(
    left: NDArray[np.float32], right: NDArray[np.float32], threshold: float
) -> tuple[Places, Places, NDArray[np.float64]]:
    """Return similar pairs of two blocks: places in both ``(n,) int64``, and scores ``(n,) float64``."""
    products = (left / norms(left)[:, None]) @ (right / norms(right)[:, None]).T
    # The largest float32 error of a cosine. Pairs near the threshold are computed again in float64.
    rounding = 1e-6 + 4e-7 * left.shape[1] ** 0.5
    a, b = np.nonzero(products >= threshold - rounding)
    del products
    scores = np.empty(len(a))
    step = max(1, _BLOCK_BYTES // (32 * left.shape[1]))
    for start in range(0, len(a), step):
        x = left[a[start : start + step]].astype(np.float64)
        y = right[b[start : start + step]].astype(np.float64)
        lengths = np.sqrt(np.einsum("ij,ij->i", x, x) * np.einsum("ij,ij->i", y, y))
        scores[start : start + step] = np.einsum("ij,ij->i", x, y) / np.maximum(lengths, _TINY)
    keep = scores >= threshold - 1e-12
    return a[keep], b[keep], np.minimum(scores[keep], 1.0)

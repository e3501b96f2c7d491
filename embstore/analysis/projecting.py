"""Project a view to two or a few dimensions."""

from __future__ import annotations

from embstore._engine.rng import Rng, generator_of
from embstore._outputs.projection import Method, project_vectors
from embstore._outputs.projection import Projection as Projection
from embstore.store.as_view import as_view
from embstore.store.embedding_store import EmbeddingStore, View


def project(
    view: View | EmbeddingStore,
    method: Method = "pca",
    n: int = 2,
    *,
    field: str | None = None,
    rng: Rng | None = None,
) -> Projection:
    """Project the flattened rows of a view to `n` dimensions.

    PCA reads blocks. Up to 2,048 dimensions it reads all rows twice, for the covariance and for the points. For more
    dimensions it reads them nine times, for a randomised subspace iteration (Halko, Martinsson and Tropp, SIAM Review
    53, 2011). The sign of each component makes its largest weight positive. UMAP (McInnes, Healy and Melville, 2018)
    reads all rows into RAM, and uses cosine distance.

    Parameters
    ----------
    view : View or EmbeddingStore
    method : {"pca", "umap"}
    n : int
    field : str, optional
    rng : int or numpy.random.Generator, optional
        By default each call uses seed 0.

    Returns
    -------
    Projection
        `points` is ``(len(view), n) float32``. `explained` is the share of the variance of each component.

    Raises
    ------
    EmptyViewError, NonFiniteError, ShapeError, MissingLibraryError

    Examples
    --------
    >>> import embstore, numpy as np, tempfile
    >>> store = embstore.open(tempfile.mkdtemp() + "/demo.zarr", "w-", config={"encoder": "demo"})
    >>> _ = store.append(["a:x", "b:x", "c:x"], np.array([[0, 1], [1, 1], [2, 1]], np.float32))
    >>> project(store.select(), n=1).points.tolist()
    [[-1.0], [0.0], [1.0]]
    """
    return project_vectors(as_view(view).vectors(field), method, n, generator_of(0 if rng is None else rng))

"""A view in two dimensions, or a few."""

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
    """Project a view's rows, flattened, on `n` dimensions.

    PCA reads blocks: once for the covariance of up to 2,048 dimensions and once for the points; beyond, nine times,
    for a randomised subspace iteration (Halko, Martinsson and Tropp, SIAM Review 53, 2011). Of a component's two signs
    it takes the one whose largest weight is positive. UMAP (McInnes, Healy and Melville, 2018) takes all rows into RAM,
    and cosine distance.

    Parameters
    ----------
    view : View or EmbeddingStore
    method : {"pca", "umap"}
    n : int
    field : str, optional
    rng : int or numpy.random.Generator, optional
        The same at each call, unless given.

    Returns
    -------
    Projection
        `points`: ``(len(view), n) float32``; `explained`: each component's share of the variance.

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

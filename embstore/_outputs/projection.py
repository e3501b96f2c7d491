"""Project vectors to a few dimensions: PCA by passes over blocks, or UMAP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.arguments import check_choice, whole_number
from embstore._engine.lazy import imported
from embstore._outputs.vectors import Vectors
from embstore.errors import EmptyViewError

Method = Literal["pca", "umap"]

_MOST_EXACT: Final = 2_048
"""Dimensions up to which the whole covariance is decomposed: 4 s and 32 MiB here. The time grows with the cube."""

_OVERSAMPLED: Final = 10
_PASSES: Final = 6
_LEAST_FOR_UMAP: Final = 5
_LEAST_ROWS: Final = 64
"""Least rows of a block in subspace iteration. Each block updates all axes, which may be larger than the block."""

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Projection:
    """Vectors projected to fewer dimensions.

    Attributes
    ----------
    method : str
    points : ndarray, (n, dimensions) float32
    explained : ndarray, (dimensions,) float64, optional
        The share of the variance of each component. None for UMAP.
    """

    method: str
    points: NDArray[np.float32]
    explained: Doubles | None = None


def project_vectors(vectors: Vectors, method: Method, n: int, rng: np.random.Generator) -> Projection:
    """Project vectors to `n` dimensions. See `embstore.analysis.project`."""
    check_choice("method", method, get_args(Method))
    n = whole_number("n", n, 1)
    if not len(vectors):
        raise EmptyViewError(vectors.snapshot.folder.path, "project")
    return _pca(vectors, n, rng) if method == "pca" else _umap(vectors, n, rng)


def _umap(vectors: Vectors, n: int, rng: np.random.Generator) -> Projection:
    if len(vectors) < _LEAST_FOR_UMAP:
        raise ValueError(f"UMAP needs at least {_LEAST_FOR_UMAP} rows, found {len(vectors)}: project them by PCA")
    umap = imported("umap", "umap", "for this projection")
    rows = np.concatenate([block for _, block in vectors.finite_blocks()])
    model = umap.UMAP(
        n_components=n,
        n_neighbors=min(15, len(rows) - 1),
        metric="cosine",
        init="spectral" if len(rows) > 10 * n else "random",  # spectral initialisation fails for too few rows
        random_state=int(rng.integers(2**31)),
        n_jobs=1,  # a random state implies it, and umap warns otherwise
    )
    return Projection(method="umap", points=np.asarray(model.fit_transform(rows), dtype=np.float32))


def _pca(vectors: Vectors, n: int, rng: np.random.Generator) -> Projection:
    """Project to the directions of largest variance.

    Up to 2,048 dimensions these are the eigenvectors of the covariance, from one pass. For more dimensions, subspace
    iteration from random directions finds them in eight passes (Halko, Martinsson and Tropp, SIAM Review 53, 2011,
    algorithm 4.4).
    """
    if vectors.dim <= _MOST_EXACT:
        mean, covariance = _moments(vectors)
        variances, axes = np.linalg.eigh(covariance)
        total = variances.clip(0).sum()
        variances, axes = variances[::-1][:n].clip(0), axes[:, ::-1][:, :n]
    else:
        mean, total = _spread(vectors)
        axes = _subspace(vectors, mean, n, rng)
        within = _coordinates(vectors, mean, axes).astype(np.float64)
        inner, turn = np.linalg.eigh(within.T @ within / len(vectors))
        variances, axes = inner[::-1][:n].clip(0), (axes @ turn)[:, ::-1][:, :n]
    # Of the two signs of a component, choose the one whose largest weight is positive.
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])] < 0, -1, 1)
    points = np.zeros((len(vectors), n), dtype=np.float32)  # zero beyond the number of directions
    points[:, : axes.shape[1]] = _coordinates(vectors, mean, axes)
    explained = np.zeros(n)
    explained[: len(variances)] = variances / total if total > 0 else 0
    return Projection(method="pca", points=points, explained=explained)


def _moments(vectors: Vectors) -> tuple[Doubles, Doubles]:
    """Return the mean ``(dim,)`` and the covariance ``(dim, dim)`` from one pass."""
    dim = vectors.dim
    total, products = np.zeros(dim), np.zeros((dim, dim))
    origin: NDArray[np.float32] | None = None
    for _, block in vectors.finite_blocks():
        if origin is None:
            # Without it, squares of vectors far from zero would cancel out.
            origin = block.mean(axis=0, dtype=np.float64).astype(np.float32)
        block = block - origin
        total += block.sum(axis=0, dtype=np.float64)
        products += block.T @ block
    assert origin is not None
    mean = total / len(vectors)
    return origin + mean, products / len(vectors) - np.outer(mean, mean)


def _spread(vectors: Vectors) -> tuple[Doubles, float]:
    """Return the mean ``(dim,)`` and the total variance of all dimensions."""
    mean = np.zeros(vectors.dim)
    for _, block in vectors.finite_blocks():
        mean += block.sum(axis=0, dtype=np.float64)
    mean /= len(vectors)
    origin = mean.astype(np.float32)
    squares = sum(float(np.square(block - origin).sum(dtype=np.float64)) for _, block in vectors.blocks())
    return mean, squares / len(vectors)


def _subspace(vectors: Vectors, mean: Doubles, n: int, rng: np.random.Generator) -> Doubles:
    """Return orthonormal axes that span the first `n` components and up to 10 more: ``(dim, n + 10)``."""
    width = min(n + _OVERSAMPLED, vectors.dim, len(vectors))
    axes = rng.standard_normal((vectors.dim, width))
    for _ in range(_PASSES):
        axes, _triangle = np.linalg.qr(axes)
        narrow, grown = axes.astype(np.float32), np.zeros_like(axes)
        for _start, block in vectors.blocks(max(vectors.step, _LEAST_ROWS)):
            block = block - mean.astype(np.float32)
            grown += block.T @ (block @ narrow)
        axes = grown
    return np.linalg.qr(axes)[0]


def _coordinates(vectors: Vectors, mean: Doubles, axes: Doubles) -> NDArray[np.float32]:
    """Return the coordinates of vectors on the axes: ``(n, axes) float32``."""
    narrow, origin = axes.astype(np.float32), mean.astype(np.float32)
    parts: list[Any] = [(block - origin) @ narrow for _, block in vectors.blocks()]
    return np.concatenate(parts)

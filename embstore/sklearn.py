"""Embeddings as a step of a scikit-learn pipeline: each text is encoded once, whatever the folds.

`pip install 'embstore[sklearn]'`. The rows lie in a cache, by their content: see `embstore.pipeline.by_content`.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from embstore._engine.format.config import Config
from embstore.cache.cache import Cache
from embstore.encoders.base import Encoder
from embstore.errors import RefitError, ShapeError
from embstore.pipeline.by_content import RowsByContent

__all__ = ["EmbeddingTransformer"]


class EmbeddingTransformer(TransformerMixin, BaseEstimator):  # type: ignore[misc] # scikit-learn has no types
    """A transformer from texts, files, arrays or images to their embeddings. Only content without a row is encoded.

    `clone` keeps the encoder itself, so that a loaded model is not copied for each fold.

    Parameters
    ----------
    encoder : Encoder
        Frozen, such as `embstore.from_pretrained` returns. `fit` does not train it.
    cache : Cache or path_like
    field : str, optional
        The encoder's field to use. The default is the only one, or the store's first.
    batch_size : int
        As for `embstore.embed`.

    Attributes
    ----------
    config_ : Config
        The encoder's config at `fit`.
    n_features_out_ : int

    Examples
    --------
    >>> import numpy as np, tempfile, embstore
    >>> def sizes(texts):
    ...     return np.array([[len(text), text.count("a")] for text in texts], np.float32)
    >>> encoder = embstore.encoders.FunctionEncoder(sizes, config={"encoder": "sizes", "version": 1})
    >>> EmbeddingTransformer(encoder, tempfile.mkdtemp()).fit_transform(["a cat", "dog", "a cat"]).tolist()
    [[5.0, 2.0], [3.0, 0.0], [5.0, 2.0]]
    """

    def __init__(
        self, encoder: Encoder, cache: Cache | str | os.PathLike[str], *, field: str | None = None, batch_size: int = 32
    ) -> None:
        self.encoder = encoder
        self.cache = cache
        self.field = field
        self.batch_size = batch_size

    def fit(self, X: Any, y: Any = None) -> Self:
        """Note the encoder's config, and the size of a row by that of the first sample.

        Parameters
        ----------
        X : sequence of n texts, paths, arrays or images, or a table of one column
        y : ignored
        """
        self.config_ = Config(self.encoder.config)
        self.n_features_out_ = self._rows(_contents(X)[:1]).shape[1]
        return self

    def transform(self, X: Any) -> NDArray[Any]:
        """Return the rows of samples, ``(n, dim)``. Rows of several axes are flattened, bfloat16 is float32.

        Raises
        ------
        NotFittedError
        RefitError
            The encoder's config is not that of `fit`.
        SampleError
            A sample can't be read or encoded. The rows of all others are stored.
        ShapeError
            The field is ragged.
        """
        check_is_fitted(self, "config_")
        if differences := self.config_.diff(self.encoder.config):
            raise RefitError(differences)
        return self._rows(_contents(X))

    def _rows(self, contents: Sequence[Any]) -> NDArray[Any]:
        if not len(contents):
            raise ValueError("expected at least one sample, found none")
        rows = RowsByContent(self.cache, self.encoder.config, self.field)
        found = rows.encoded(contents, self.encoder, batch_size=self.batch_size, progress=False)
        if not isinstance(found, np.ndarray):
            hint = "pool it, as in from_pretrained(…, fields=['mean'])"
            raise ShapeError(self.field or "embedding", expected="rows of one length", found=f"ragged rows; {hint}")
        return found.reshape(len(found), -1)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[Any]:
        """Return the names of the columns for `set_output`, such as ``embedding0``."""
        check_is_fitted(self, "config_")
        return np.array([f"{self.field or 'embedding'}{number}" for number in range(self.n_features_out_)], object)

    def __sklearn_clone__(self) -> Self:
        other = type(self)(**self.get_params(deep=False))
        for name in ("_sklearn_output_config", "_metadata_request"):
            if hasattr(self, name):
                setattr(other, name, copy.deepcopy(getattr(self, name)))
        return other

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array = True, False
        return tags


def _contents(X: Any) -> Sequence[Any]:
    """Return the samples of a list, an array of texts, a Series or a table of one column."""
    if isinstance(X, str | bytes):
        raise TypeError("expected samples, found a single one; pass a list")
    if hasattr(X, "columns") or (isinstance(X, np.ndarray) and X.ndim == 2 and X.dtype.kind in "OU"):
        X = np.asarray(X, object)
        if X.shape[1] != 1:
            raise ValueError(f"expected one column of samples, found {X.shape[1]}; choose one with a ColumnTransformer")
        X = X[:, 0]
    return [str(one) if isinstance(one, np.str_) else one for one in X]

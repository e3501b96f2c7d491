"""Texts as query vectors for a search, by the model that made the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.arguments import text_list
from embstore._engine.format.config import Config
from embstore.encoders.base import Encoder, as_encoder
from embstore.errors import ConfigMismatchError, FieldMismatchError
from embstore.store.reader import StoreReader


def text_vectors(store: StoreReader, text: str | Sequence[str], encoder: Encoder, field: str) -> NDArray[np.float32]:
    """Return the vectors of texts in a field: ``(n, dim) float32``, or ``(dim,)`` for a single text.

    Raises
    ------
    ConfigMismatchError
        Both the rows and the encoder are of `from_pretrained`, and of models with other weights.
    FieldMismatchError
        The encoder's field of this name is another output of the model, such as the vector before the projection.
    """
    own = as_encoder(encoder)
    stored, given = _model(store.config), _model(own.config)
    if stored and given and (differences := stored.diff(given)):
        raise ConfigMismatchError(store.path, differences)
    spec = store.fields[field]
    found = None if own.fields is None else own.with_fields([field]).fields
    if found is not None and spec.layer and (spec.layer, spec.pooling) != (found[field].layer, found[field].pooling):
        raise FieldMismatchError(field, path=store.path, expected=spec.meaning, found=found[field].meaning)
    vectors = own(text_list("text", text), field=field)
    return vectors[0] if isinstance(text, str) else vectors


def _model(config: Mapping[str, Any]) -> Config | None:
    """Return the weights of a model of `from_pretrained`. Both towers of a model have the same."""
    encoder = config.get("encoder")
    if not isinstance(encoder, Mapping) or not {"weights", "modality"} <= encoder.keys():
        return None
    return Config(encoder={"weights": encoder["weights"]})

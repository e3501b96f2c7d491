"""`SentenceTransformer.encode` on a cache. The model is loaded when a text is missing, else neither it nor torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, Final

import numpy as np

from embstore._engine.format.config import Config
from embstore._engine.lazy import imported
from embstore.cache.cache import Cache
from embstore.encoders.functions import FunctionEncoder
from embstore.encoders.model_files import locate
from embstore.encoders.weights import digest_files, joined
from embstore.pipeline.by_content import RowsByContent

_AT_ONCE: Final = 16_384
"""Texts in one call of the model, which sorts them by length. They are committed together."""


class CachedSentenceTransformer:
    """A SentenceTransformer whose `encode` takes stored rows from a cache. All else is the model's, and loads it.

    Texts that are encoded together have the values of `SentenceTransformer.encode`. As there, the last bits of a row
    depend on the batch that it was encoded in.

    Parameters
    ----------
    model_name_or_path : str or path
        A folder, or a model of the Hugging Face Hub. Rows belong to the content of its files.
    cache : Cache or path_like
    revision : str, optional
    device : str, optional
    **options
        As for `SentenceTransformer`. Rows belong to these options, too.
    """

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str],
        *,
        cache: Cache | str | os.PathLike[str],
        revision: str | None = None,
        device: str | None = None,
        **options: Any,
    ) -> None:
        name = os.fspath(model_name_or_path)
        if "/" not in name and not os.path.isdir(name):
            name = f"sentence-transformers/{name}"  # as the library completes short names
        place = locate(name, revision, None, "text")
        files = [
            str(path.relative_to(place.folder))
            for path in place.folder.rglob("*")
            if path.is_file() and path.suffix != ".md" and not path.name.startswith(".")
        ]
        self._make = {"model_name_or_path": str(place.folder), "device": device, **options}
        self._cache = cache if isinstance(cache, Cache) else Cache(cache)
        self._config = {
            "encoder": {
                "id": place.id,
                "library": "sentence-transformers",
                "files": joined(digest_files(place.folder, files)),
                "options": {name: value if _is_plain(value) else repr(value) for name, value in options.items()},
            }
        }

    @cached_property
    def model(self) -> Any:
        """The loaded SentenceTransformer."""
        library = imported("sentence_transformers", "sentence-transformers", "for texts that are not stored")
        return library.SentenceTransformer(**self._make)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_make", "_cache", "_config"):  # copy and pickle ask before they are set
            raise AttributeError(name)
        return getattr(self.model, name)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "model"}

    def encode(
        self,
        inputs: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str | None = "sentence_embedding",
        precision: str = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: Any = None,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return embeddings as `SentenceTransformer.encode` does. Inputs but texts are always encoded."""
        given = {name: value for name, value in locals().items() if name not in ("self", "inputs", "kwargs")}
        return self._encoded("encode", inputs, {**given, **kwargs})

    def encode_query(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return embeddings as `SentenceTransformer.encode_query` does, with the prompt for queries."""
        return self._encoded("encode_query", inputs, {**dict(zip(_ORDER, args, strict=False)), **kwargs})

    def encode_document(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return embeddings as `SentenceTransformer.encode_document` does, with the prompt for documents."""
        return self._encoded("encode_document", inputs, {**dict(zip(_ORDER, args, strict=False)), **kwargs})

    def _encoded(self, method: str, inputs: Any, given: dict[str, Any]) -> Any:
        texts = [inputs] if isinstance(inputs, str) else inputs.tolist() if isinstance(inputs, np.ndarray) else inputs
        as_is = {name: given.get(name) for name in given if name not in _OUTPUT}
        known = given.get("output_value", "sentence_embedding") == "sentence_embedding" and {*given} <= {*_ORDER}
        if not known or not isinstance(texts, Sequence) or not texts or not all(isinstance(one, str) for one in texts):
            return getattr(self.model, method)(inputs, **given)
        values = {name: given[name] for name in _VALUES if given.get(name) not in (None, False)}
        config = Config(self._config, method=method, arguments=values)
        encoder = FunctionEncoder(partial(self._missing, method, as_is), config=config)
        rows: Any = RowsByContent(self._cache, config).encoded(texts, encoder, batch_size=_AT_ONCE, progress=False)
        if given.get("precision", "float32") != "float32":
            rows = imported(
                "sentence_transformers.util", "sentence-transformers", "for precision="
            ).quantize_embeddings(rows, given["precision"])
        if given.get("convert_to_tensor") or not given.get("convert_to_numpy", True):
            rows = imported("torch", "torch", "for tensors").as_tensor(rows)
            rows = rows if given.get("convert_to_tensor") else list(rows)
        return rows[0] if isinstance(inputs, str) else rows

    def _missing(self, method: str, given: dict[str, Any], texts: list[str]) -> Any:
        return getattr(self.model, method)(texts, **given)


_ORDER: Final = tuple(CachedSentenceTransformer.encode.__annotations__)[1:-2]
_VALUES: Final = ("prompt_name", "prompt", "normalize_embeddings", "truncate_dim")
"""Arguments that rows depend on."""
_OUTPUT: Final = ("precision", "convert_to_numpy", "convert_to_tensor")
"""Arguments about the form of the output, which is made of the rows."""


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | list | dict)

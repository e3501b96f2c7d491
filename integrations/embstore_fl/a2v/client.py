"""The client's side: embeddings that a training loop made are kept, and looked for before it makes them again."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from embstore_fl.a2v.mixing import MixIn

logger = logging.getLogger("embstore")


def base_of(dataset: Any) -> Any:
    """Return a dataset, or the one that it is a `torch.utils.data.Subset` of."""
    while hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    return dataset


class A2VClient(MixIn):
    """Gives a client the names that today's training loop calls.

    What it needs of the client is ``node_data.train_dataset``, of an `A2VDataset`; to extract a part of a batch, also
    ``model.ast_feature_extractor`` and ``model.ast_model``, or an `extract_audio_embeddings` of its own.
    """

    provides: ClassVar[tuple[str, ...]] = (
        "audio_embedding_cache_load",
        "audio_embedding_store",
        "audio_embeddings_dataset_cache",
    )

    @property
    def audio_embedding_store(self) -> dict[str, Any]:
        """What this client made and the server has not saved yet, by ``file_id:class``."""
        found: dict[str, Any] = self.__dict__.setdefault("_audio_embedding_store", {})
        return found

    @audio_embedding_store.setter
    def audio_embedding_store(self, values: Mapping[str, Any] | None) -> None:
        self.__dict__["_audio_embedding_store"] = dict(values or {})

    @audio_embedding_store.deleter
    def audio_embedding_store(self) -> None:
        self.__dict__.pop("_audio_embedding_store", None)

    def audio_embeddings_dataset_cache(
        self,
        samples: Mapping[str, Any],
        outputs: Mapping[str, Any],
        dataloader: Any = None,
        device: str = "cpu",
    ) -> None:
        """Keep the embeddings of a batch that the model made: with the dataset, and for the server to save.

        Those that the dataset has already are not kept again: a store's rows would come into memory.

        Parameters
        ----------
        samples : mapping
            The batch, with ``file_id`` and ``class_name``.
        outputs : mapping
            With ``audio_embeddings``, ``(n, *shape)``.
        dataloader : DataLoader, optional
            Whose dataset it is; the training dataset by default.
        device : str
            Where they are kept.
        """
        keys = _keys(samples)
        if keys is None:
            return
        own = self.node_data.train_dataset if dataloader is None else dataloader.dataset  # type: ignore[attr-defined]
        embeddings = base_of(own).audio_embs
        new = [place for place, key in enumerate(keys) if key not in embeddings]
        self._keep(embeddings, keys, new, outputs["audio_embeddings"], device)

    def _keep(self, embeddings: Any, keys: Sequence[str], places: Sequence[int], rows: Any, device: str) -> None:
        for place in places:
            # A copy of this row: a view would keep the whole batch in memory, and change with it.
            row = rows[place].detach().to(device).clone()
            embeddings[keys[place]] = row
            if getattr(self, "store_audio_embedding", True):
                self.audio_embedding_store[keys[place]] = row
        logger.debug("node %s: kept %d of %d embeddings", getattr(self, "id", "?"), len(places), len(keys))

    def audio_embedding_cache_load(self, samples: Mapping[str, Any]) -> Any:
        """Return the embeddings of a batch: those that are there, and of the others alone new ones.

        Returns
        -------
        Tensor, (n, *shape), or None
            A copy. None, if there is none of any sample, or the others can't be extracted here: then the model is to
            make all of them, as today.
        """
        import torch

        keys = _keys(samples)
        if not keys:
            return None
        embeddings = base_of(self.node_data.train_dataset).audio_embs  # type: ignore[attr-defined]
        found = [embeddings.get(key) for key in keys]
        missing = [place for place, row in enumerate(found) if row is None]
        if len(missing) == len(keys):
            return None
        if missing:
            audio = samples.get("audio")
            whole = audio is not None and len(audio) == len(keys) and audio[0].numel() > 0
            rows = self.extract_audio_embeddings(audio[missing]) if whole and audio is not None else None
            if rows is None:
                logger.info("node %s: %d of %d embeddings missing", getattr(self, "id", "?"), len(missing), len(keys))
                return None
            by_place = dict(zip(missing, rows, strict=True))
            self._keep(embeddings, keys, missing, by_place, "cpu")
            found = [embeddings[key] for key in keys]
        first = next(row for place, row in enumerate(found) if place not in set(missing))
        return torch.stack([row.detach().to(first.dtype) for row in found])

    def extract_audio_embeddings(self, audio: Any) -> Any:
        """Return embeddings of clips ``(n, samples)``, by the model that the client shares; None, if it has none."""
        import torch

        model = getattr(self, "model", None)
        extractor, ast = getattr(model, "ast_feature_extractor", None), getattr(model, "ast_model", None)
        if extractor is None or ast is None:
            return None
        rate = getattr(base_of(self.node_data.train_dataset), "audio_sample_rate", 16_000)  # type: ignore[attr-defined]
        inputs = extractor(audio.cpu().numpy(), sampling_rate=rate, return_tensors="pt", padding=True).input_values
        with torch.no_grad():
            return ast(inputs.to(next(ast.parameters()).device)).last_hidden_state


def _keys(samples: Mapping[str, Any]) -> list[str] | None:
    """Return the keys of a batch; None, if it does not say them."""
    file_ids, classes = samples.get("file_id"), samples.get("class_name")
    if file_ids is None or classes is None:
        return None
    return [f"{file_id}:{class_name}" for file_id, class_name in zip(file_ids, classes, strict=True)]

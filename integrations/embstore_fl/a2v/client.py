"""Client mix-in: keeps the embeddings that a training loop makes, and looks them up before the next extraction."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from embstore_fl.a2v.dataset import A2VDataset
from embstore_fl.a2v.mixing import MixIn
from embstore_fl.splits import SPLITS

logger = logging.getLogger("embstore")


def dataset_of(client: Any) -> Any:
    """Return a client's training data set, below a `torch.utils.data.Subset`. None before the client has one."""
    return base_of(getattr(getattr(client, "node_data", None), "train_dataset", None))


def base_of(dataset: Any) -> Any:
    """Return the data set itself, or the data set below a `torch.utils.data.Subset`."""
    while hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    return dataset


def _use_own_splits(data: Any) -> None:
    """Give a node's data the splits of its data set, if they were replaced by random ones.

    The A2V `NodeData` tries a stratified split of its own first. This fails where a class has fewer than ten samples,
    and samples for training then become samples for testing.
    """
    dataset = getattr(data, "dataset", None)
    parts = {split: getattr(dataset, split, None) for split in SPLITS}
    if not isinstance(dataset, A2VDataset) or getattr(data.train_dataset, "dataset", None) is not dataset:
        return
    if not parts["train"]:
        return
    for split, part in parts.items():
        setattr(data, f"{split}_dataset", part or None)
        setattr(data, f"{split}_samples", len(part or ()))
    logger.warning("node %s: the splits of %r are used, in place of random ones", getattr(data, "id", "?"), dataset)


class A2VClient(MixIn):
    """Mix-in with the client methods that the A2V training loop calls.

    The client needs ``node_data.train_dataset``, an `A2VDataset`. To extract a part of a batch it also needs
    ``model.ast_feature_extractor`` and ``model.ast_model``, or its own `extract_audio_embeddings`.
    """

    provides: ClassVar[tuple[str, ...]] = (
        "_save_ast_embeddings_to_disk_cache",
        "audio_embedding_cache_load",
        "audio_embedding_store",
        "audio_embeddings_dataset_cache",
        "store_audio_embeddings",
        "use_cls_token_only",
    )

    @property
    def node_data(self) -> Any:
        """The node's data, with the splits of its data set."""
        return self.__dict__.get("_node_data")

    @node_data.setter
    def node_data(self, value: Any) -> None:
        self.__dict__["_node_data"] = value
        _use_own_splits(value)

    @property
    def use_cls_token_only(self) -> bool:
        """Whether the client's model uses the first token (CLS) of each embedding alone. The data set follows it."""
        return bool(self.__dict__.get("_use_cls_token_only"))

    @use_cls_token_only.setter
    def use_cls_token_only(self, value: bool) -> None:
        self.__dict__["_use_cls_token_only"] = bool(value)
        dataset = dataset_of(self)
        if isinstance(dataset, A2VDataset):
            dataset.use_cls_token_only = bool(value)

    @property
    def audio_embedding_store(self) -> dict[str, Any]:
        """Embeddings that this client made and the server has not saved yet, by ``file_id:class``."""
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
        """Keep new embeddings of a batch, in the data set and for the server to save.

        Embeddings that the data set has already are not kept again, as this would copy rows of a store into memory.

        Parameters
        ----------
        samples : mapping
            The batch, with the lists ``file_id`` and ``class_name`` of length n.
        outputs : mapping
            Its ``audio_embeddings`` is a tensor ``(n, *shape)``.
        dataloader : DataLoader, optional
            Loader of the data set that gets the embeddings. Default: the training data set.
        device : str
            Device to keep the embeddings on.
        """
        keys = _keys(samples)
        if keys is None:
            return
        own = dataset_of(self) if dataloader is None else base_of(dataloader.dataset)
        embeddings = own.audio_embs
        new = [place for place, key in enumerate(keys) if key not in embeddings]
        self._keep(embeddings, keys, new, outputs["audio_embeddings"], device)

    def store_audio_embeddings(self, audio_data: Any, model_outputs: Mapping[str, Any]) -> None:
        """Keep new embeddings of a batch for the server to save. `audio_data` is not used.

        The A2V code keeps every batch of every epoch, also of embeddings that were read from the cache.

        Parameters
        ----------
        audio_data : object
        model_outputs : mapping
            ``audio_embeddings``, a tensor ``(n, *shape)``, and the lists ``audio_filename`` and ``class_name``.
        """
        names = model_outputs.get("audio_filename")
        if names is not None and "audio_embeddings" in model_outputs:
            file_ids = [os.path.splitext(name)[0] for name in names]
            self.audio_embeddings_dataset_cache({**model_outputs, "file_id": file_ids}, model_outputs)

    def _save_ast_embeddings_to_disk_cache(self) -> None:
        """Append the new embeddings to the store of the data set, and free their memory.

        The A2V code from 29 January 2026 on calls it at the end of the first round.
        """
        dataset = dataset_of(self)
        if isinstance(dataset, A2VDataset) and dataset.enable_ast_cache and dataset.audio_embs.written:
            dataset.save_ast_embeddings_to_cache(dict(dataset.audio_embs.written))
            dataset.load_ast_embeddings_from_cache()
            dataset.audio_embs.forget(dataset.ast_report.stored)

    def _keep(self, embeddings: Any, keys: Sequence[str], places: Sequence[int], rows: Any, device: str) -> None:
        for place in places:
            # Copy the row: a view keeps the whole batch in memory and changes with it.
            row = rows[place].detach().to(device).clone()
            embeddings[keys[place]] = row
            if getattr(self, "store_audio_embedding", True):
                self.audio_embedding_store[keys[place]] = row
        logger.debug("node %s: kept %d of %d embeddings", getattr(self, "id", "?"), len(places), len(keys))

    def audio_embedding_cache_load(self, samples: Mapping[str, Any]) -> Any:
        """Return the embeddings of a batch, and extract only those that are missing.

        Parameters
        ----------
        samples : mapping
            The batch, with the lists ``file_id`` and ``class_name`` of length n, and perhaps ``audio``.

        Returns
        -------
        Tensor, (n, *shape), or None
            A copy. None if no sample has an embedding, or if the missing ones can't be extracted here. The training
            loop then extracts the whole batch.
        """
        import torch

        keys = _keys(samples)
        if not keys:
            return None
        embeddings = dataset_of(self).audio_embs
        found = [embeddings.get(key) for key in keys]
        missing = [place for place, row in enumerate(found) if row is None]
        if len(missing) == len(keys):
            return None
        if missing:
            audio = samples.get("audio")
            whole = audio is not None and len(audio) == len(keys) and audio.numel() > 0
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
        """Extract embeddings with the AST of the client's model.

        Parameters
        ----------
        audio : Tensor, (n, samples)

        Returns
        -------
        Tensor, (n, *shape), or None
            None if the client's model has no AST.
        """
        import torch

        model = getattr(self, "model", None)
        extractor, ast = getattr(model, "ast_feature_extractor", None), getattr(model, "ast_model", None)
        if extractor is None or ast is None:
            return None
        rate = getattr(dataset_of(self), "audio_sample_rate", 16_000)
        inputs = extractor(audio.cpu().numpy(), sampling_rate=rate, return_tensors="pt", padding=True).input_values
        with torch.no_grad():
            found = ast(inputs.to(next(ast.parameters()).device)).last_hidden_state
        return found[:, :1] if self.use_cls_token_only else found


def _keys(samples: Mapping[str, Any]) -> list[str] | None:
    """Return the keys of a batch, or None if it lacks ``file_id`` or ``class_name``."""
    file_ids, classes = samples.get("file_id"), samples.get("class_name")
    if file_ids is None or classes is None:
        return None
    return [f"{file_id}:{class_name}" for file_id, class_name in zip(file_ids, classes, strict=True)]

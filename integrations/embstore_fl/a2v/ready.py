"""Data sets that take the place of today's: their names and their words, over `embstore_fl.datasets`.

Imports torch when it is imported.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from embstore.errors import MissingLibraryError
from embstore.sources import FileSample
from embstore_fl.a2v.dataset import A2VDataset
from embstore_fl.a2v.options import Options
from embstore_fl.datasets.base import AudioSource, read_json
from embstore_fl.datasets.esc50 import ESC50
from embstore_fl.datasets.federated import FLDataset
from embstore_fl.datasets.vegas import VEGAS
from embstore_fl.datasets.vggsound import VGGSound
from embstore_fl.overlay import AudioEmbeddings

try:
    import torch
    from torch.utils.data import default_collate
except ImportError as error:
    raise MissingLibraryError("torch", "fl", "for embstore_fl.a2v") from error


class ReadyDataset(A2VDataset, FLDataset):
    """A data set with the words of today's.

    Parameters
    ----------
    root_dir : path_like, optional
        `default_root_dir`, unless given.
    **options
        As today: see `embstore_fl.a2v.options.Options`, whose defaults are today's, too.

    Attributes
    ----------
    default_root_dir : path_like or None
        Of the class: today's have a folder of their author's there.

    Raises
    ------
    UnknownClassError, UnknownSplitError, RatiosError, NodeError, NodeRangeError
        Where today's warn, or go on with another selection.
    """

    source_class: ClassVar[type[AudioSource]]
    default_root_dir: ClassVar[str | os.PathLike[str] | None] = None
    defaults: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, root_dir: str | os.PathLike[str] | None = None, **options: Any) -> None:
        root = self.default_root_dir if root_dir is None else root_dir
        if root is None:
            raise TypeError(f"{type(self).__name__} needs root_dir=, or default_root_dir set in a class of yours")
        self.root_dir = os.fspath(root)
        self.options = Options(**{**self.defaults, **options})
        self.enable_ast_cache = self.options.enable_ast_cache
        self.ast_cache_dir = self.options.ast_cache_dir
        self.audio_sample_rate = self.options.audio_sample_rate
        self.audio_duration = self.options.audio_duration
        source = self.make_source(root)
        self.ast_dataset_name = source.name
        FLDataset.__init__(
            self,
            source,
            self.options.selection(source),
            load_audio="missing" if self.options.load_audio else "never",
            audio=self.options.clip,
            client=self.options.node_split_id,
        )
        self.device = torch.device("cpu")
        if file := self.options.audio_embedding_file:
            self.load_audio_embeddings_from_file(file)

    def make_source(self, root: str | os.PathLike[str]) -> AudioSource:
        """Return the recordings below a folder."""
        return self.source_class(root)

    # -- what the mix-in needs, without a dictionary a sample ---------------------------------

    @property
    def ast_keys(self) -> list[str]:
        """Keys of the dataset's own samples."""
        return self._keys

    def _ast_files(self, keys: Sequence[str] | None = None) -> dict[str, FileSample]:
        wanted = None if keys is None else set(keys)
        listed = [chosen.listed for chosen in self.chosen]
        return {one.key: self.source.sample(one) for one in listed if wanted is None or one.key in wanted}

    def _new_embeddings(self) -> AudioEmbeddings:
        return self._embeddings

    def ast_leave_out(self, keys: Collection[str]) -> None:
        """Go on without these samples, here and in the splits: their clips can't be decoded."""
        self.leave_out(keys)

    def part(self, split: str) -> Self:
        """Return the samples of a split, which share this one's embeddings."""
        self._ast_state()  # before the copy, so that they share what the mix-in keeps, too
        return super().part(split)

    # -- samples ------------------------------------------------------------------------------

    @cached_property
    def captions(self) -> Mapping[str, str]:
        """What ``captions.json`` says of samples, if it is there."""
        path = Path(self.root_dir) / "captions.json"
        found: dict[str, str] = read_json(path, dict) if path.exists() else {}
        return found

    @cached_property
    def _text_embeddings(self) -> Mapping[str, Any] | None:
        file = self.options.embedding_file
        if file is None or not os.path.isfile(file):
            return None
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        return {str(name).lower(): value for name, value in loaded.items()}

    @property
    def text_embs(self) -> Mapping[str, Any] | None:
        """Embeddings of the classes' names, by class; read when they are first asked for, and handed on as they are."""
        return self.__dict__["_text_embs"] if self.__dict__.get("_text_embs") is not None else self._text_embeddings

    @text_embs.setter
    def text_embs(self, values: Mapping[str, Any] | None) -> None:
        self.__dict__["_text_embs"] = values

    def details(self, place: int) -> dict[str, Any]:
        """Return what is known of a sample without reading it."""
        found = {"image_path": None, "video_path": None, **super().details(place)}
        found["original_class_label"] = found["class_label"]
        found["end_second"] = found.get("end_second") or float(found.get("start_second", 0)) + self.audio_duration
        found["caption"] = self.captions.get(found["file_id"], "")
        return found

    def _sample(self, place: int, embedding: Any) -> dict[str, Any]:
        more = self.details(place)
        names = ("image_filename", "video_filename", "video_id", "sample_idx", "ytid", "start_second", "end_second")
        sample = super()._sample(place, embedding)
        return sample | {name: more[name] for name in (*names, "fold", "caption") if name in more}

    # -- today's words ------------------------------------------------------------------------

    @property
    def CLASS_LABELS(self) -> dict[str, int]:
        """The label of each class of the whole data set."""
        return dict(self.source.labels)

    @property
    def LABEL_TO_CLASS(self) -> dict[int, str]:
        """The class of each label."""
        return {label: name for name, label in self.source.labels.items()}

    @property
    def available_classes(self) -> list[str]:
        """All classes of the data set, by their labels."""
        return self.source.classes

    @property
    def selected_classes(self) -> list[str] | None:
        """The classes that were asked for."""
        chosen = self.selection.selected_classes
        return None if chosen is None else self.source.names_of(chosen)

    @property
    def excluded_classes(self) -> list[str] | None:
        """The classes that were excluded."""
        chosen = self.selection.excluded_classes
        return None if chosen is None else self.source.names_of(chosen)

    def get_class_names(self) -> list[str]:
        """Return the selected classes."""
        return list(self.active_classes)

    def get_class_labels(self) -> list[int]:
        """Return their labels."""
        return list(self.active_classes.values())

    def get_num_classes(self) -> int:
        """Return how many are selected; for a model's output, see `get_max_class_label`."""
        return len(self.active_classes)

    def get_max_class_label(self) -> int:
        """Return the largest of their labels."""
        return max(self.active_classes.values())

    def get_samples_per_class(self) -> dict[str, int]:
        """Return how many samples each class has that has any."""
        counts: dict[str, int] = {}
        for chosen in self.chosen:
            counts[chosen.listed.class_name] = counts.get(chosen.listed.class_name, 0) + 1
        return counts

    def get_class_distribution(self) -> dict[str, float]:
        """Return the percentage of each class."""
        return {name: 100 * count / len(self) for name, count in self.get_samples_per_class().items()}

    def get_text_embeddings(self, class_name: str) -> Any:
        """Return the embedding of a class's name; None, if there is none."""
        return (self.text_embs or {}).get(class_name.lower())

    def get_collate_fn(self) -> Any:
        """Return the function that makes a batch of samples."""
        return collate

    def to(self, device: Any) -> Self:
        """Note the device; samples stay where they are, and the training loop moves batches."""
        self.device = torch.device(device)
        return self


class VEGASDataset(ReadyDataset):
    """VEGAS, in the place of ``datautils.dataset_vegas.VEGASDataset``."""

    source_class = VEGAS


class ESC50Dataset(ReadyDataset):
    """ESC-50 in either layout, in the place of ``datautils.dataset_esc50.ESC50Dataset``."""

    source_class = ESC50


class VGGSoundDataset(ReadyDataset):
    """VGGSound, in the place of ``datautils.dataset_vggsound.VGGSoundDataset``."""

    source_class = VGGSound
    defaults: ClassVar[Mapping[str, Any]] = {"audio_duration": 10.0, "use_official_split": True}


_LISTED = {
    "class_names": "class_name",
    "video_ids": "video_id",
    "file_ids": "file_id",
    "sample_indices": "sample_idx",
    "folds": "fold",
    "ytids": "ytid",
    "start_seconds": "start_second",
    "end_seconds": "end_second",
    "captions": "caption",
}


def collate(batch: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Make a batch, with the names that today's training loop reads.

    Of ``text_emb``, a batch has each sample's own: ``(n, …)``, where each is ``(1, …)``. (Today's takes the first
    sample's for all.)

    Returns
    -------
    dict
        ``labels`` (also as ``label``), ``audio``, ``audio_emb`` and ``text_emb`` as far as the samples have them,
        ``class_name``, ``file_id``, ``audio_filename``, and ``metadata``.
    """
    out: dict[str, Any] = {"labels": torch.stack([sample["label"] for sample in batch])}
    out["label"] = out["labels"]
    for name in ("audio", "audio_emb"):
        if all(name in sample for sample in batch):
            out[name] = torch.stack([sample[name] for sample in batch])
    if all("text_emb" in sample for sample in batch):
        out["text_emb"] = _together([sample["text_emb"] for sample in batch])
    out["metadata"] = {
        plural: [sample[name] for sample in batch] for plural, name in _LISTED.items() if name in batch[0]
    }
    for name in ("class_name", "file_id", "audio_filename"):
        out[name] = [sample[name] for sample in batch]
    return out


def _together(values: Sequence[Any]) -> Any:
    """Put together tensors, or mappings of them; one that has an axis of one before it goes without."""
    if isinstance(values[0], Mapping):
        return {name: _together([value[name] for value in values]) for name in values[0]}
    if isinstance(values[0], torch.Tensor):
        alone = values[0].ndim > 1 and all(value.shape[0] == 1 for value in values)
        return torch.cat(list(values)) if alone else torch.stack(list(values))
    return default_collate(list(values))

"""Replacements for the A2V data sets, with the same names and attributes, over `embstore_fl.datasets`.

Importing this module imports torch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from embstore._engine.lazy import cached_property
from embstore.errors import AmbiguousConfigError, MissingLibraryError
from embstore.sources import FileSample
from embstore_fl.a2v.dataset import A2VDataset
from embstore_fl.a2v.options import File, Options
from embstore_fl.datasets.base import AudioSource, read_json
from embstore_fl.datasets.clips import stackable
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

logger = logging.getLogger("embstore")


class ReadyDataset(A2VDataset, FLDataset):
    """A data set with the names and options of the A2V data sets.

    Parameters
    ----------
    root_dir : path_like, optional
        Folder of the data set. Default: `default_root_dir`.
    **options
        See `embstore_fl.a2v.options.Options`. Names and defaults are those of the A2V code.

    Attributes
    ----------
    default_root_dir : path_like or None
        Class attribute, None here. The A2V classes have a folder of their author's machine.
    defaults : mapping
        Class attribute: other defaults of options. The A2V classes have files of their author's machine as the default
        of ``embedding_file``. Without that option samples have no ``text_emb``.

    Raises
    ------
    TypeError
        Neither `root_dir` nor `default_root_dir` is set.
    FileNotFoundError
        `embedding_file` is missing.
    UnknownClassError, UnknownSplitError, RatiosError, NodeError, NodeRangeError
        The A2V classes only warn here, or use another selection.
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
            text_embs=_text_embeddings(self.options.embedding_file),
            client=self.options.node_split_id,
        )
        self.device = torch.device("cpu")
        if self.options.use_saved_audio_embeddings:
            self._look_up_by_itself()
        if file := self.options.audio_embedding_file:
            self.load_audio_embeddings_from_file(file)

    def _look_up_by_itself(self) -> None:
        """Look up the cache. The A2V server calls `load_ast_embeddings_from_cache` for VEGAS alone."""
        try:
            self.load_ast_embeddings_from_cache()
        except AmbiguousConfigError as error:  # the server chooses by the config of its encoder
            logger.warning("%s: no store is used yet: %s", self._ast_name, error)

    def make_source(self, root: str | os.PathLike[str]) -> AudioSource:
        """Return the source of the recordings below a folder."""
        return self.source_class(root)

    # -- overrides of the mix-in that make no dictionary for each sample -----------------------

    @property
    def ast_keys(self) -> list[str]:
        """Keys of the data set's own samples."""
        return self._keys

    def _ast_files(self, keys: Sequence[str] | None = None) -> dict[str, FileSample]:
        wanted = None if keys is None else set(keys)
        listed = [chosen.listed for chosen in self.chosen]
        return {one.key: self.source.sample(one) for one in listed if wanted is None or one.key in wanted}

    def ast_class_of(self, file_id: str) -> str | None:
        """Return the class of a bare file_id, or None if several classes of the whole data set may have it."""
        return self.source.class_of(file_id)

    def _new_embeddings(self) -> AudioEmbeddings:
        return self._embeddings

    def ast_leave_out(self, keys: Collection[str]) -> None:
        """Remove samples whose clips can't be decoded, here and in the splits."""
        self.leave_out(keys)

    def part(self, split: str) -> Self:
        """Return the samples of a split. It shares the embeddings of this data set."""
        self._ast_state()  # before the copy, so that both share the state of the mix-in
        return super().part(split)

    # -- samples ------------------------------------------------------------------------------

    @cached_property
    def captions(self) -> Mapping[str, str]:
        """Captions by file_id from ``captions.json``, empty without that file."""
        path = Path(self.root_dir) / "captions.json"
        found: dict[str, str] = read_json(path, dict) if path.exists() else {}
        return found

    def details(self, place: int) -> dict[str, Any]:
        """Return the metadata of a sample. No recording is opened."""
        found = {"image_path": None, "video_path": None, **super().details(place)}
        found["original_class_label"] = found["class_label"]
        found["end_second"] = found.get("end_second") or float(found.get("start_second", 0)) + self.audio_duration
        found["caption"] = self.captions.get(found["file_id"], "")
        return found

    def _sample(self, place: int, embedding: Any) -> dict[str, Any]:
        more = self.details(place)
        names = ("image_filename", "video_filename", "video_id", "sample_idx", "ytid", "start_second", "end_second")
        sample = super()._sample(place, embedding)
        sample.update({name: more[name] for name in (*names, "fold", "caption") if name in more})
        return sample

    # -- names of the A2V data sets -----------------------------------------------------------

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
        """All classes of the data set, in the order of their labels."""
        return self.source.classes

    @property
    def selected_classes(self) -> list[str] | None:
        """The classes of the option `selected_classes`, by name."""
        chosen = self.selection.selected_classes
        return None if chosen is None else self.source.names_of(chosen)

    @property
    def excluded_classes(self) -> list[str] | None:
        """The classes of the option `excluded_classes`, by name."""
        chosen = self.selection.excluded_classes
        return None if chosen is None else self.source.names_of(chosen)

    def get_class_names(self) -> list[str]:
        """Return the selected classes."""
        return list(self.active_classes)

    def get_class_labels(self) -> list[int]:
        """Return the labels of the selected classes."""
        return list(self.active_classes.values())

    def get_num_classes(self) -> int:
        """Return the number of selected classes. For the size of a model's output, see `get_max_class_label`."""
        return len(self.active_classes)

    def get_max_class_label(self) -> int:
        """Return the largest label of the selected classes."""
        return max(self.active_classes.values())

    def get_samples_per_class(self) -> dict[str, int]:
        """Return the number of samples of each class that has samples."""
        counts: dict[str, int] = {}
        for chosen in self.chosen:
            counts[chosen.listed.class_name] = counts.get(chosen.listed.class_name, 0) + 1
        return counts

    def get_class_distribution(self) -> dict[str, float]:
        """Return the percentage of samples of each class, from 0 to 100."""
        return {name: 100 * count / len(self) for name, count in self.get_samples_per_class().items()}

    def get_text_embeddings(self, class_name: str) -> Any:
        """Return the embedding of a class name, or None."""
        return (self.text_embs or {}).get(class_name.lower())

    def get_collate_fn(self) -> Any:
        """Return the collate function."""
        return collate


class VEGASDataset(ReadyDataset):
    """VEGAS. Replaces ``datautils.dataset_vegas.VEGASDataset``."""

    source_class = VEGAS


class ESC50Dataset(ReadyDataset):
    """ESC-50 in either layout. Replaces ``datautils.dataset_esc50.ESC50Dataset``."""

    source_class = ESC50


class VGGSoundDataset(ReadyDataset):
    """VGGSound. Replaces ``datautils.dataset_vggsound.VGGSoundDataset``."""

    source_class = VGGSound
    defaults: ClassVar[Mapping[str, Any]] = {"audio_duration": 10.0, "use_official_split": True}


def _text_embeddings(file: File) -> dict[str, Any] | None:
    """Return embeddings of the class names by class in lower case, mapped from a file of `torch.save`."""
    if file is None:
        return None
    loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    return {str(name).lower(): value for name, value in loaded.items()}


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


def collate(batch: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Collate samples into a batch with the names that the A2V training loop reads.

    ``text_emb`` holds the text embedding of each sample: ``(n, …)`` from samples of ``(1, …)``. (The A2V code repeats
    the first sample's for the whole batch.)

    Parameters
    ----------
    batch : sequence of n dict
        Samples of a `ReadyDataset`.

    Returns
    -------
    dict
        ``labels`` and ``label``, the same tensor ``(n,) int64``. ``audio``, ``audio_emb`` and ``text_emb``, each if
        all samples have it. The lists ``class_name``, ``file_id`` and ``audio_filename``. ``metadata``, a dict of
        lists.
    """
    batch = stackable(batch)
    out: dict[str, Any] = {"labels": torch.stack([sample["label"] for sample in batch])}
    out["label"] = out["labels"]
    for name in ("audio", "audio_emb"):
        if name in batch[0]:
            out[name] = torch.stack([sample[name] for sample in batch])
    if "text_emb" in batch[0]:
        out["text_emb"] = _together([sample["text_emb"] for sample in batch])
    out["metadata"] = {
        plural: [sample[name] for sample in batch] for plural, name in _LISTED.items() if name in batch[0]
    }
    for name in ("class_name", "file_id", "audio_filename"):
        out[name] = [sample[name] for sample in batch]
    return out


def _together(values: Sequence[Any]) -> Any:
    """Stack tensors, or mappings of tensors. A leading axis of length 1 becomes the batch axis."""
    if isinstance(values[0], Mapping):
        return {name: _together([value[name] for value in values]) for name in values[0]}
    if isinstance(values[0], torch.Tensor):
        alone = values[0].ndim > 1 and all(value.shape[0] == 1 for value in values)
        return torch.cat(list(values)) if alone else torch.stack(list(values))
    return default_collate(list(values))

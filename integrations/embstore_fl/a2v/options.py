"""The constructor options of the A2V data sets."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from embstore.encoders import AudioSettings
from embstore_fl.datasets.base import AudioSource
from embstore_fl.datasets.selection import Selection
from embstore_fl.errors import UnknownSplitError
from embstore_fl.splits import SPLITS

logger = logging.getLogger("embstore")

_ALL = (None, "all")

Classes = Sequence[str | int] | None
Folds = Sequence[int] | None
File = str | os.PathLike[str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of the A2V constructors. Options without an effect here are accepted and logged.

    Attributes
    ----------
    selected_classes, excluded_classes, num_samples_per_class
        See `embstore_fl.datasets.Selection`.
    split : str or None
        "train", "val" or "test" for one split. "all" and None for all, with ``.train``, ``.val`` and ``.test``.
    splits_to_load : sequence of str or None
        Several splits in one data set.
    train_ratio, val_ratio, test_ratio : float
    split_ratio : float or None
        Ratio of train and val together, instead of `test_ratio`.
    use_folds, train_folds, val_folds, test_folds
    use_official_split : bool
    node_split_id, num_nodes, samples_per_node, node_split_seed
    node_id : int or None
        No effect. ESC-50 and VGGSound used it as a seed, so two nodes disagreed on the test samples.
    embedding_file, text_embedding_file : path_like or None
        Embeddings of the class names. VEGAS has the first name for it, the others the second.
    audio_embedding_file : path_like or None
    audio_sample_rate, audio_duration, load_audio
    use_saved_audio_embeddings : bool
        Look up the cache when the data set is made.
    ast_cache_dir, enable_ast_cache
    parent_ast_cache, parent_audio_embs
        No effect: splits share the embeddings of the whole data set anyway.
    """

    selected_classes: Classes = None
    excluded_classes: Classes = None
    num_samples_per_class: int | None = None
    split: str | None = None
    splits_to_load: Sequence[str] | None = None
    train_ratio: float = 0.7
    val_ratio: float = 0.1
    test_ratio: float = 0.2
    split_ratio: float | None = None
    use_folds: bool = False
    train_folds: Folds = None
    val_folds: Folds = None
    test_folds: Folds = None
    use_official_split: bool = False
    stratify: bool = True
    node_split_id: int | None = None
    num_nodes: int | None = None
    samples_per_node: int | None = None
    node_split_seed: int = 42
    node_id: int | None = None
    embedding_file: File = None
    text_embedding_file: File = None
    audio_embedding_file: File = None
    use_saved_audio_embeddings: bool = True
    audio_sample_rate: int = 16_000
    audio_duration: float = 5.0
    load_audio: bool = True
    ast_cache_dir: File = None
    enable_ast_cache: bool = True
    enable_cache: bool = False
    cache_dir: File = None
    load_image: bool = False
    load_video: bool = False
    image_size: tuple[int, int] = (224, 224)
    video_fps: int = 25
    transform_audio: Any = None
    transform_image: Any = None
    transform_video: Any = None
    parent_ast_cache: Any = None
    parent_audio_embs: Any = None

    def __post_init__(self) -> None:
        if self.embedding_file is None and self.text_embedding_file is not None:
            object.__setattr__(self, "embedding_file", self.text_embedding_file)
        for name, usual in (
            ("stratify", True),
            ("enable_cache", False),
            ("load_image", False),
            ("load_video", False),
            ("transform_audio", None),
        ):
            if getattr(self, name) != usual:
                logger.warning("%s=%r has no effect", name, getattr(self, name))

    @property
    def clip(self) -> AudioSettings:
        """Sample rate (Hz) and duration (seconds) of decoded clips."""
        return AudioSettings(sample_rate=self.audio_sample_rate, duration=self.audio_duration)

    def selection(self, source: AudioSource) -> Selection:
        """Return the selection that the options describe.

        Raises
        ------
        UnknownSplitError, RatiosError, NodeError, NodeRangeError
        """
        node = self.node_split_id
        if node is not None and self.num_nodes is None and self.samples_per_node is None:
            logger.warning("node_split_id=%d without num_nodes or samples_per_node: the node has all samples", node)
            node = None
        scheme: dict[str, Any] = {"ratios": self._ratios(), "seed": self.node_split_seed}
        if self.use_folds:
            scheme |= {"by": "fold", "folds": self._folds(source)}
        elif self.use_official_split:
            scheme |= {"by": "official"}
        return Selection.of(
            selected_classes=self.selected_classes or None,
            excluded_classes=self.excluded_classes,
            num_samples_per_class=self.num_samples_per_class,
            num_nodes=self.num_nodes,
            samples_per_node=self.samples_per_node,
            node_split_id=node,
            splits=self._splits(source),
            **scheme,
        )

    def _ratios(self) -> dict[str, float]:
        if self.split_ratio is None:
            return {"train": self.train_ratio, "val": self.val_ratio, "test": self.test_ratio}
        return {"train": self.split_ratio - self.val_ratio, "val": self.val_ratio, "test": 1 - self.split_ratio}

    def _folds(self, source: AudioSource) -> dict[str, tuple[int, ...]]:
        """Return the folds of each split. Default: the last fold for testing, the others for training."""
        given = {"train": self.train_folds, "val": self.val_folds, "test": self.test_folds}
        if not any(given.values()):
            return {"train": source.folds[:-1], "test": source.folds[-1:]}
        return {split: tuple(folds) for split, folds in given.items() if folds}

    def _splits(self, source: AudioSource) -> tuple[str, ...] | None:
        asked = (self.split,) if self.splits_to_load is None else tuple(self.splits_to_load)
        for split in asked:
            if split not in (*_ALL, *SPLITS):
                raise UnknownSplitError(source.name, "split", split, (*SPLITS, "all"))
        return None if any(split in _ALL for split in asked) else tuple(str(split) for split in asked)

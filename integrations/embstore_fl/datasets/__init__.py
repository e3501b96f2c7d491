"""Data sets of recordings in their real layouts, as sources for `embstore.embed` and as data sets of FL's nodes.

`VEGAS`, `ESC50` and `VGGSound` know where files lie and what their classes and labels are; `Selection` says which of
them a node has; `FLDataset` gives them as samples with their embeddings. Names are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from embstore._engine.lazy import lazily

if TYPE_CHECKING:
    from embstore_fl.datasets.base import AudioSource as AudioSource
    from embstore_fl.datasets.by_name import DATASETS as DATASETS
    from embstore_fl.datasets.by_name import source_for as source_for
    from embstore_fl.datasets.esc50 import ESC50 as ESC50
    from embstore_fl.datasets.federated import FLDataset as FLDataset
    from embstore_fl.datasets.listed import Listed as Listed
    from embstore_fl.datasets.selection import Selected as Selected
    from embstore_fl.datasets.selection import Selection as Selection
    from embstore_fl.datasets.vegas import VEGAS as VEGAS
    from embstore_fl.datasets.vggsound import VGGSound as VGGSound

_HOMES = {
    "AudioSource": "base",
    "DATASETS": "by_name",
    "ESC50": "esc50",
    "FLDataset": "federated",
    "Listed": "listed",
    "Selected": "selection",
    "Selection": "selection",
    "VEGAS": "vegas",
    "VGGSound": "vggsound",
    "source_for": "by_name",
}

__all__ = [*_HOMES]

if not TYPE_CHECKING:  # it would accept any misspelt name
    __getattr__, __dir__ = lazily(__name__, _HOMES)

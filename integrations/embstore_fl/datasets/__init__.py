"""Data sets of recordings in their real layouts: sources for `embstore.embed`, and PyTorch data sets of FL nodes.

`VEGAS`, `ESC50` and `VGGSound` list files, classes and labels. A `Selection` chooses the recordings of a node.
`FLDataset` returns samples with their embeddings. Names are imported on first use.
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

if not TYPE_CHECKING:  # a type checker that sees `__getattr__` accepts any misspelt name
    __getattr__, __dir__ = lazily(__name__, _HOMES)

"""Adapter for the audio-to-visual (A2V) code base lucapalazzo/fedgfe with its own names.

`A2VDataset`, `A2VClient` and `A2VServer` are mix-ins for its classes. `VEGASDataset`, `ESC50Dataset` and
`VGGSoundDataset` replace its data sets. Names are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from embstore._engine.lazy import lazily

if TYPE_CHECKING:
    from embstore_fl.a2v.client import A2VClient as A2VClient
    from embstore_fl.a2v.dataset import A2VDataset as A2VDataset
    from embstore_fl.a2v.ready import ESC50Dataset as ESC50Dataset
    from embstore_fl.a2v.ready import VEGASDataset as VEGASDataset
    from embstore_fl.a2v.ready import VGGSoundDataset as VGGSoundDataset
    from embstore_fl.a2v.ready import collate as collate
    from embstore_fl.a2v.reports import Attempt as Attempt
    from embstore_fl.a2v.reports import NodeEmbeddings as NodeEmbeddings
    from embstore_fl.a2v.server import A2VServer as A2VServer

_HOMES = {
    "A2VClient": "client",
    "A2VDataset": "dataset",
    "A2VServer": "server",
    "Attempt": "reports",
    "ESC50Dataset": "ready",
    "NodeEmbeddings": "reports",
    "VEGASDataset": "ready",
    "VGGSoundDataset": "ready",
    "collate": "ready",
}

__all__ = [*_HOMES]

if not TYPE_CHECKING:  # a type checker that sees `__getattr__` accepts any misspelt name
    __getattr__, __dir__ = lazily(__name__, _HOMES)

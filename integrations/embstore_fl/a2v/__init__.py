"""A2V: the names that lucapalazzo/fedgfe has at commit 8c08e90, over the store.

`A2VDataset`, `A2VClient` and `A2VServer` are mix-ins for classes that are there; `VEGASDataset`, `ESC50Dataset` and
`VGGSoundDataset` take the place of data sets. Names are imported when they are first used.
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

if not TYPE_CHECKING:  # it would accept any misspelt name
    __getattr__, __dir__ = lazily(__name__, _HOMES)

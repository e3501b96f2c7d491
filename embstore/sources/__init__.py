"""Sources: where samples come from. They find samples and tell whether they changed; decoding is the encoders'.

The names below are imported when they are first used, as those of `embstore` are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from embstore._engine.lazy import lazily

if TYPE_CHECKING:
    from embstore.sources.base import FileSample as FileSample
    from embstore.sources.base import Sample as Sample
    from embstore.sources.base import digest_of as digest_of
    from embstore.sources.datasets import HFDataset as HFDataset
    from embstore.sources.folder import Folder as Folder
    from embstore.sources.items import Items as Items
    from embstore.sources.table import Table as Table

_HOMES = {
    "FileSample": "base",
    "Folder": "folder",
    "HFDataset": "datasets",
    "Items": "items",
    "Sample": "base",
    "Table": "table",
    "digest_of": "base",
}

__all__ = [*_HOMES]

if not TYPE_CHECKING:  # it would accept any misspelt name
    __getattr__, __dir__ = lazily(__name__, _HOMES)

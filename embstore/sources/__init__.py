"""Sources: they find samples and detect changes. Encoders decode the content.

Names are imported on first use, as in `embstore`.
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

if not TYPE_CHECKING:  # type checkers would accept any misspelt name
    __getattr__, __dir__ = lazily(__name__, _HOMES)

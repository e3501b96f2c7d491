"""Sources: where samples come from. They find samples and tell whether they changed; decoding is the encoders'.

The names below are imported when they are first used, as those of `embstore` are.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    """Import a public name's module when the name is first used."""
    if name in _HOMES:
        value = getattr(importlib.import_module(f"embstore.sources.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'embstore.sources' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)

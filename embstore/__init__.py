"""embstore: run a frozen encoder once. Embeddings as chunked Zarr arrays, read back without a copy.

The names below are the public ones. They are imported when they are first used, so that importing embstore
costs next to nothing, and loads none of zarr, torch and transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embstore import errors as errors
    from embstore.changes import AppendResult as AppendResult
    from embstore.config import Config as Config
    from embstore.config import Difference as Difference
    from embstore.keys import Key as Key
    from embstore.schema import FieldSpec as FieldSpec
    from embstore.store import EmbeddingStore as EmbeddingStore
    from embstore.store import EraseReceipt as EraseReceipt
    from embstore.store import open as open
    from embstore.verify import salvage as salvage
    from embstore.verify import verify as verify
    from embstore.view import View as View

__version__ = "0.1.0.dev0"

_HOMES = {
    "AppendResult": "changes",
    "Config": "config",
    "Difference": "config",
    "EmbeddingStore": "store",
    "EraseReceipt": "store",
    "FieldSpec": "schema",
    "Key": "keys",
    "View": "view",
    "open": "store",
    "salvage": "verify",
    "verify": "verify",
}

__all__ = ["__version__", "errors", *_HOMES]  # noqa: PLE0604 - strings all the same


def __getattr__(name: str) -> Any:
    """Import a public name's module when the name is first used."""
    if name == "errors":
        return importlib.import_module("embstore.errors")
    if name in _HOMES:
        value = getattr(importlib.import_module(f"embstore.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'embstore' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)

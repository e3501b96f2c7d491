"""embstore: run a frozen encoder once. Embeddings as chunked Zarr arrays, read back without a copy.

The names below are the public ones. They are imported when they are first used, so that importing embstore
costs next to nothing, and loads none of zarr, torch and transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from embstore.lazy import lazily

if TYPE_CHECKING:
    from embstore import errors as errors
    from embstore.alignment import Aligned as Aligned
    from embstore.alignment import align as align
    from embstore.cache import Cache as Cache
    from embstore.cache import CacheEntry as CacheEntry
    from embstore.cache import Lookup as Lookup
    from embstore.canary import CanaryReport as CanaryReport
    from embstore.canary import check as check
    from embstore.changes import AppendResult as AppendResult
    from embstore.config import Config as Config
    from embstore.config import Difference as Difference
    from embstore.encoders.base import Encoder as Encoder
    from embstore.encoders.pretrained import from_pretrained as from_pretrained
    from embstore.erasing import EraseReceipt as EraseReceipt
    from embstore.exchange.exporting import export_file as export_file
    from embstore.exchange.importing import ImportResult as ImportResult
    from embstore.exchange.importing import import_file as import_file
    from embstore.explanation import why as why
    from embstore.integrity import salvage as salvage
    from embstore.integrity import verify as verify
    from embstore.keys import Key as Key
    from embstore.merging import merge as merge
    from embstore.opening import open as open
    from embstore.pipeline import EmbedResult as EmbedResult
    from embstore.pipeline import embed as embed
    from embstore.ragged import Padded as Padded
    from embstore.ragged import Ragged as Ragged
    from embstore.schema import FieldSpec as FieldSpec
    from embstore.sources.base import Sample as Sample
    from embstore.sources.base import Source as Source
    from embstore.sources.base import digest_of as digest_of
    from embstore.store import EmbeddingStore as EmbeddingStore
    from embstore.view import View as View

__version__ = "0.1.0.dev0"

_HOMES = {
    "Aligned": "alignment",
    "AppendResult": "changes",
    "Cache": "cache",
    "CacheEntry": "cache",
    "CanaryReport": "canary",
    "Config": "config",
    "Difference": "config",
    "EmbedResult": "pipeline",
    "EmbeddingStore": "store",
    "Encoder": "encoders.base",
    "EraseReceipt": "erasing",
    "FieldSpec": "schema",
    "ImportResult": "exchange.importing",
    "Key": "keys",
    "Lookup": "cache",
    "Padded": "ragged",
    "Ragged": "ragged",
    "Sample": "sources.base",
    "Source": "sources.base",
    "View": "view",
    "align": "alignment",
    "check": "canary",
    "digest_of": "sources.base",
    "embed": "pipeline",
    "errors": "",
    "export_file": "exchange.exporting",
    "from_pretrained": "encoders.pretrained",
    "import_file": "exchange.importing",
    "merge": "merging",
    "open": "opening",
    "salvage": "integrity",
    "verify": "integrity",
    "why": "explanation",
}

__all__ = ["__version__", *_HOMES]

__getattr__, __dir__ = lazily(__name__, _HOMES)

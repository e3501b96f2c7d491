"""embstore: run a frozen encoder once. Embeddings as chunked Zarr arrays, read back without a copy.

The names below are public. They are imported when they are first used, so `import embstore` is fast, and loads
neither zarr nor torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from embstore._engine.lazy import lazily
from embstore._engine.version import __version__

if TYPE_CHECKING:
    from embstore import errors as errors
    from embstore._engine.format.config import Config as Config
    from embstore._engine.format.config import Difference as Difference
    from embstore._engine.format.keys import Key as Key
    from embstore._engine.format.ragged import Padded as Padded
    from embstore._engine.format.ragged import Ragged as Ragged
    from embstore._engine.format.record import FieldSpec as FieldSpec
    from embstore._engine.format.record import Origin as Origin
    from embstore._engine.write.erase import EraseReceipt as EraseReceipt
    from embstore._engine.write.fold_parts import TidyResult as TidyResult
    from embstore._engine.write.plans import AppendResult as AppendResult
    from embstore.cache.cache import Cache as Cache
    from embstore.cache.lookup import CacheEntry as CacheEntry
    from embstore.cache.lookup import Lookup as Lookup
    from embstore.cache.prune import StoreUse as StoreUse
    from embstore.cache.usage import Usage as Usage
    from embstore.cache.why import Explanation as Explanation
    from embstore.cache.why import why as why
    from embstore.encoders.base import Encoder as Encoder
    from embstore.encoders.pretrained import from_pretrained as from_pretrained
    from embstore.exchange.exporting import export_file as export_file
    from embstore.exchange.importing import ImportResult as ImportResult
    from embstore.exchange.importing import import_file as import_file
    from embstore.pipeline.check import CanaryReport as CanaryReport
    from embstore.pipeline.check import check as check
    from embstore.pipeline.embed import embed as embed
    from embstore.pipeline.result import EmbedResult as EmbedResult
    from embstore.sources.base import Sample as Sample
    from embstore.sources.base import Source as Source
    from embstore.sources.base import digest_of as digest_of
    from embstore.store.align import Aligned as Aligned
    from embstore.store.align import align as align
    from embstore.store.embedding_store import EmbeddingStore as EmbeddingStore
    from embstore.store.embedding_store import View as View
    from embstore.store.merge import merge as merge
    from embstore.store.open import open as open
    from embstore.store.pull import PullResult as PullResult
    from embstore.store.pull import pull as pull
    from embstore.store.push import PushResult as PushResult
    from embstore.store.push import push as push
    from embstore.store.salvage import SalvageReport as SalvageReport
    from embstore.store.salvage import salvage as salvage
    from embstore.store.tidy import tidy as tidy
    from embstore.store.verify import Problem as Problem
    from embstore.store.verify import Report as Report
    from embstore.store.verify_parts import verify as verify

_HOMES = {
    "Aligned": "store.align",
    "AppendResult": "_engine.write.plans",
    "Cache": "cache.cache",
    "CacheEntry": "cache.lookup",
    "CanaryReport": "pipeline.check",
    "Config": "_engine.format.config",
    "Difference": "_engine.format.config",
    "EmbedResult": "pipeline.result",
    "EmbeddingStore": "store.embedding_store",
    "Encoder": "encoders.base",
    "EraseReceipt": "_engine.write.erase",
    "Explanation": "cache.why",
    "FieldSpec": "_engine.format.record",
    "ImportResult": "exchange.importing",
    "Key": "_engine.format.keys",
    "Lookup": "cache.lookup",
    "Origin": "_engine.format.record",
    "Padded": "_engine.format.ragged",
    "Ragged": "_engine.format.ragged",
    "Problem": "store.verify",
    "PullResult": "store.pull",
    "PushResult": "store.push",
    "Report": "store.verify",
    "SalvageReport": "store.salvage",
    "Sample": "sources.base",
    "Source": "sources.base",
    "StoreUse": "cache.prune",
    "TidyResult": "_engine.write.fold_parts",
    "Usage": "cache.usage",
    "View": "store.embedding_store",
    "align": "store.align",
    "check": "pipeline.check",
    "digest_of": "sources.base",
    "embed": "pipeline.embed",
    "errors": "",
    "export_file": "exchange.exporting",
    "from_pretrained": "encoders.pretrained",
    "import_file": "exchange.importing",
    "merge": "store.merge",
    "open": "store.open",
    "pull": "store.pull",
    "push": "store.push",
    "salvage": "store.salvage",
    "tidy": "store.tidy",
    "verify": "store.verify_parts",
    "why": "cache.why",
}

__all__ = ["__version__", *_HOMES]


def _named(place: str) -> Any:
    """Return the object of a public name, such as "embstore:View". See `embstore._engine.pickles`."""
    from pkgutil import resolve_name

    return resolve_name(place)


if not TYPE_CHECKING:  # it would accept any misspelt name
    __getattr__, __dir__ = lazily(__name__, _HOMES)

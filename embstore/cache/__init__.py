"""Many stores under one folder, one a config. Names are imported when they are first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embstore._engine.lazy import lazily

if TYPE_CHECKING:
    from embstore.cache.prune import StoreUse as StoreUse

_HOMES = {
    "StoreUse": "prune",
}

__all__ = [*_HOMES]

__getattr__, __dir__ = lazily(__name__, _HOMES)

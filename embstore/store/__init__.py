"""The store and its views. Names are imported when they are first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embstore._engine.lazy import lazily

if TYPE_CHECKING:
    from embstore.store.salvage import SalvageReport as SalvageReport
    from embstore.store.verify import Report as Report

_HOMES = {
    "Report": "verify",
    "SalvageReport": "verify",
}

__all__ = [*_HOMES]

__getattr__, __dir__ = lazily(__name__, _HOMES)

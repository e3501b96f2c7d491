"""The pipeline from samples to rows in a store. Names are imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embstore._engine.lazy import lazily

if TYPE_CHECKING:
    from embstore.pipeline.embed import part_path as part_path

_HOMES = {
    "part_path": "embed",
}

__all__ = [*_HOMES]

__getattr__, __dir__ = lazily(__name__, _HOMES)

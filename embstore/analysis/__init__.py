"""Functions over views: classes, near duplicates, outliers and projections. Rows are read a block at a time.

Each function takes a view, or a store for all its live rows. Names are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from embstore._engine.lazy import lazily

if TYPE_CHECKING:
    from embstore.analysis.atlas import Exploration as Exploration
    from embstore.analysis.atlas import explore as explore
    from embstore.analysis.classes import Centroids as Centroids
    from embstore.analysis.classes import Distances as Distances
    from embstore.analysis.classes import centroids as centroids
    from embstore.analysis.classes import distances as distances
    from embstore.analysis.pairs import duplicates as duplicates
    from embstore.analysis.projecting import Projection as Projection
    from embstore.analysis.projecting import project as project
    from embstore.analysis.unusual import outliers as outliers

_HOMES = {
    "Centroids": "classes",
    "Distances": "classes",
    "Exploration": "atlas",
    "Projection": "projecting",
    "centroids": "classes",
    "distances": "classes",
    "duplicates": "pairs",
    "explore": "atlas",
    "outliers": "unusual",
    "project": "projecting",
}

__all__ = [*_HOMES]

if not TYPE_CHECKING:  # it would accept any misspelt name
    __getattr__, __dir__ = lazily(__name__, _HOMES)

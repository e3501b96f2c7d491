"""Lookups: what a cache has of the keys that are wanted, and why it lacks the others.

`embstore.cache.why` says the same attribute by attribute, for a person to read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from embstore._engine.format.config import Config, Difference
from embstore._engine.pickles import PickledByName
from embstore.cache.coverage import compare_digests
from embstore.store.embedding_store import EmbeddingStore


@dataclass(frozen=True, slots=True)
class CacheEntry(PickledByName):
    """One store of a cache, as its record describes it.

    It stands for its path, so that `embstore.open` takes it.

    Attributes
    ----------
    path : Path
    config : Config
    rows : int
        Live ones.
    last_used : float
        See `StoreUse`; seconds since the epoch.
    """

    path: Path
    config: Config
    rows: int
    last_used: float

    def __fspath__(self) -> str:
        """Return the path."""
        return str(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup(PickledByName):
    """What a cache has of what is wanted.

    Attributes
    ----------
    hit : bool
        Whether everything wanted is stored and current.
    reason : str
        In words, for a log or a person.
    path : Path
        Where the config's store lies, or would.
    stored, missing, stale : tuple of str
        The wanted keys: there and current; not there; there, but computed from other content.
    nearest : CacheEntry or None
        The store whose config differs least, if there is none of this config.
    differences : tuple of Difference
        How its config differs (found) from the one wanted (expected).
    """

    hit: bool
    reason: str
    path: Path
    stored: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    nearest: CacheEntry | None = None
    differences: tuple[Difference, ...] = ()

    @property
    def coverage(self) -> float:
        """Part of the wanted keys that is stored and current, from 0 to 1."""
        wanted = len(self.stored) + len(self.missing) + len(self.stale)
        return len(self.stored) / wanted if wanted else float(self.hit)


def look_up(path: Path, store: EmbeddingStore, wanted: list[str], digests: Mapping[str, str]) -> Lookup:
    """Return what the store, found at `path` in its cache, has of the wanted keys; see `Cache.lookup`."""
    found = compare_digests(store, wanted, digests)
    return Lookup(
        hit=found.complete,
        reason=found.reason if wanted else f"hit: {len(store):,} rows",
        path=path,
        stored=tuple(found.stored),
        missing=tuple(found.missing),
        stale=tuple(found.stale),
    )


def miss(path: Path, wanted: list[str], nearest: CacheEntry | None, differences: tuple[Difference, ...]) -> Lookup:
    """Return the lookup of a config whose store would be at `path`, but is not there."""
    reason = "miss: no store has this config; "
    if nearest is None:
        reason += f"{path.parent} is empty"
    else:
        reason += "the nearest differs in " + "; ".join(map(str, differences))
    return Lookup(hit=False, reason=reason, path=path, missing=tuple(wanted), nearest=nearest, differences=differences)

"""Lookups: which of the wanted keys a cache has, and why it lacks the others.

`embstore.cache.why` explains a miss attribute by attribute, for a person to read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from embstore._engine.format.config import Config, Difference, shown
from embstore._engine.pickles import PickledByName
from embstore.cache.coverage import compare_digests
from embstore.encoders.defaults import notable_differences
from embstore.store.embedding_store import EmbeddingStore


@dataclass(frozen=True, slots=True)
class CacheEntry(PickledByName):
    """One store of a cache. `embstore.open` takes an entry in place of a path.

    Attributes
    ----------
    path : Path, or a URL of type PurePath
    config : Config
    rows : int
        Live rows.
    last_used : float
        The later of `Usage.last_used` and the mtime of the store's record, in seconds since the epoch.
    pinned : bool
        Whether `Cache.pin` keeps the store from being removed.
    differs : dict
        The attributes in which the stores of this model differ, by dotted names that `Cache.find` takes. It has no
        entry for an attribute that this store lacks.
    """

    path: PurePath
    config: Config
    rows: int
    last_used: float
    pinned: bool = False
    differs: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __fspath__(self) -> str:
        """Return the path."""
        return str(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup(PickledByName):
    """Result of a lookup in a cache.

    Attributes
    ----------
    hit : bool
        Whether all wanted keys are stored and current.
    reason : str
        Text for logs and people.
    path : Path, or a URL of type PurePath
        Path of the config's store, which need not exist.
    stored : tuple of str
        Wanted keys that are stored and current.
    missing : tuple of str
        Wanted keys that are not stored.
    stale : tuple of str
        Wanted keys that are stored, but were computed from other content.
    nearest : CacheEntry or None
        On a miss, the store whose config differs least.
    differences : tuple of Difference
        Between the config of `nearest` (found) and the wanted config (expected): all, where `reason` leaves out those
        at the defaults of the encoder's classes.
    """

    hit: bool
    reason: str
    path: PurePath
    stored: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    nearest: CacheEntry | None = None
    differences: tuple[Difference, ...] = ()

    @property
    def coverage(self) -> float:
        """Fraction of the wanted keys that are stored and current, from 0 to 1."""
        wanted = len(self.stored) + len(self.missing) + len(self.stale)
        return len(self.stored) / wanted if wanted else float(self.hit)


def look_up(path: PurePath, store: EmbeddingStore, wanted: list[str], digests: Mapping[str, str]) -> Lookup:
    """Look up the wanted keys in the store at `path`."""
    found = compare_digests(store, wanted, digests)
    return Lookup(
        hit=found.complete,
        reason=found.reason if wanted else f"hit: {len(store):,} rows",
        path=path,
        stored=tuple(found.stored),
        missing=tuple(found.missing),
        stale=tuple(found.stale),
    )


def miss(
    path: PurePath, config: Config, wanted: list[str], nearest: CacheEntry | None, differences: tuple[Difference, ...]
) -> Lookup:
    """Return the lookup of a config whose store, at `path`, does not exist."""
    reason = "miss: no store has this config; "
    if nearest is None:
        reason += f"{path.parent} is empty"
    else:
        told = notable_differences(config, nearest.config, differences)
        reason += "the nearest differs in " + "; ".join(
            f"{d.name}: expected {shown(d.expected)}, found {shown(d.found)}" for d in told
        )
    return Lookup(hit=False, reason=reason, path=path, missing=tuple(wanted), nearest=nearest, differences=differences)

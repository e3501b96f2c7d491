"""The cache: a folder of stores, one for each config, here or in a bucket, and why a lookup hits or misses."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path, PurePath
from typing import Any, Final

from embstore._engine.format.config import Config, Difference, as_words
from embstore._engine.format.keys import Key
from embstore._engine.io.filesystem import on_network
from embstore._engine.io.locks import is_open
from embstore._engine.io.object_store import is_bucket
from embstore._engine.io.urls import Url, is_url, local_path, without_secrets
from embstore._engine.notebook import html_table
from embstore._engine.pickles import by_name
from embstore._engine.read.open_snapshot import exists
from embstore._engine.sizes import size
from embstore.cache.listing import as_text, differing, has, slug, stored_values
from embstore.cache.lookup import CacheEntry, Lookup, look_up, miss
from embstore.cache.pins import pin, unpin
from embstore.cache.prune import (
    IfOpen,
    StoreUse,
    check_limits,
    choose_for_removal,
    on_this_machine,
    remove_leftovers,
    remove_store,
)
from embstore.cache.stored import stores_in, uses_of
from embstore.cache.usage import mark_used
from embstore.errors import (
    AmbiguousConfigError,
    CacheMissError,
    EmbstoreError,
    NotAStoreError,
    ReadOnlyError,
    StoreLockedError,
)
from embstore.store.embedding_store import EmbeddingStore
from embstore.store.open import Mode
from embstore.store.open import open as open_store

logger = logging.getLogger("embstore")

_SUFFIX: Final = ".zarr"


class Cache:
    """A folder of stores, one for each config. The folder is made with its first store.

    A cache in a bucket (``s3://…``, ``gs://…``, ``az://…``) has the same methods, but those that remove or pin
    stores. Uses of its stores are not counted.

    Parameters
    ----------
    path : path_like
        Local folder, or a URL in a bucket.
    max_nbytes, unused_for : optional
        Limits, as for `prune`. After each run of `embed` or `import_file` that wrote a store, the cache removes other
        stores beyond them by itself, and logs each. Without them, nothing is removed unless asked for.
    **options
        Passed to `embstore.open` for each store: `mapping`, `check`, `lock_timeout`, `network`,
        `storage_options`. A pickled cache holds no credentials.

    Attributes
    ----------
    path : Path, or a URL of type PurePath
    max_nbytes : int or None
    unused_for : float or None
        Seconds.
    options : dict

    Raises
    ------
    ReadOnlyError
        `path` is a URL that is not in a bucket, or there are limits for a bucket.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> cache = Cache(tempfile.mkdtemp())
    >>> config = Config(encoder="MIT/ast", sample_rate=16_000, duration=5)
    >>> with cache.open(config, "a") as store:
    ...     store.append(["a:dog"], np.ones((1, 3), np.float32))
    AppendResult(appended=1, skipped=0, replaced=0)
    >>> cache.lookup(config, ["a:dog", "b:cat"]).missing
    ('b:cat',)
    >>> print(cache.lookup(Config(config, duration=10)).reason)
    miss: no store has this config; the nearest differs in duration: expected 10, found 5
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_nbytes: int | None = None,
        unused_for: timedelta | float | None = None,
        **options: Any,
    ) -> None:
        self.path: PurePath = Url.shown(path) if is_url(path) else local_path(path).resolve()
        self.max_nbytes, self.unused_for = check_limits(max_nbytes, unused_for)
        self.options = options
        if not isinstance(self.path, Path):
            if not is_bucket(os.fspath(path)):
                raise ReadOnlyError(self.path, "a cache is a local folder, or at s3://, gs:// or az://")
            if (self.max_nbytes, self.unused_for) != (None, None):
                on_this_machine(self.path, "removal by max_nbytes or unused_for")

    @property
    def storage_options(self) -> Mapping[str, Any] | None:
        """Options of the bucket."""
        return self.options.get("storage_options")

    def path_of(self, config: Mapping[str, Any]) -> PurePath:
        """Return the path or URL of the store of a config. The store need not exist."""
        config = Config(config)
        return self.path / f"{slug(config)}-{config.fingerprint[:16]}{_SUFFIX}"

    def open(self, config: Mapping[str, Any], mode: Mode = "r", **options: Any) -> EmbeddingStore:
        """Open the store of a config. Mode "a" makes a missing store.

        Opening sets the time of last use, at most once an hour and only if the cache is writable. See `prune`.

        Parameters
        ----------
        config : mapping
        mode : {"r", "r+", "a", "w-", "x"}
        **options
            As for `embstore.open`.

        Raises
        ------
        CacheMissError
            The cache has no store of this config. The error states how the nearest config differs.
        """
        config = Config(config)
        path = self.path_of(config)
        if not self.has_store(path):
            lookup = self.lookup(config)
            if mode in ("r", "r+"):
                raise CacheMissError(lookup.reason, config=config, differences=lookup.differences, path=self.path)
            logger.info("%s: a new store: %s", path, lookup.reason)
        return self._opened(path, mode, config=config, **options)

    def has_store(self, path: PurePath) -> bool:
        """Return whether anything is at the path that `path_of` returned."""
        return exists(path, self.storage_options)

    def _opened(self, path: PurePath, mode: Mode, **options: Any) -> EmbeddingStore:
        store = open_store(path, mode, **{**self.options, **options})
        mark_used(path)
        return store

    def entries(self) -> list[CacheEntry]:
        """List the stores, sorted by name. Leave out stores that can't be read, with a logged warning."""
        found = stores_in(self.path, _SUFFIX, self.storage_options)
        differences = differing([entry.config for entry in found])
        return [replace(entry, differs=own) for entry, own in zip(found, differences, strict=True)]

    def find(self, attributes: Mapping[str, Any] | None = None, /, **more: Any) -> list[CacheEntry]:
        """List the stores whose config has all these attributes.

        Parameters
        ----------
        attributes : mapping, optional
            Values by name. ``"outer.inner"`` names a nested attribute.
        **more
            The same, as keywords.
        """
        wanted = {**(attributes or {}), **more}
        return [entry for entry in self.entries() if has(entry.config, wanted)]

    def find_one(
        self, attributes: Mapping[str, Any] | None = None, /, *, mode: Mode = "r", **more: Any
    ) -> EmbeddingStore:
        """Open the one store whose config has all these attributes. This sets the time of last use, as `open` does.

        Raises
        ------
        AmbiguousConfigError
            Several stores match. The error lists them and the attributes in which they differ.
        CacheMissError
            No store matches.
        """
        wanted = {**(attributes or {}), **more}
        found = self._some(wanted)
        if len(found) > 1:
            differing = {d.name for entry in found[1:] for d in found[0].config.diff(entry.config)}
            raise AmbiguousConfigError(wanted, [entry.path for entry in found], ", ".join(sorted(differing)))
        return self._opened(found[0].path, mode)

    def lookup(
        self,
        config: Mapping[str, Any],
        keys: Sequence[str | Key] | None = None,
        *,
        digests: Mapping[str, str] | None = None,
    ) -> Lookup:
        """Return which of the wanted keys the cache has, and why it lacks the others.

        Parameters
        ----------
        config : mapping
        keys : sequence of str or Key, optional
        digests : mapping of str to str, optional
            Digest of each key's present content. A key is stale if the stored digest (column ``source_digest``)
            differs.
        """
        config = Config(config)
        path = self.path_of(config)
        wanted = [str(Key.parse(key)) for key in keys or ()]
        known = {str(Key.parse(key)): digest for key, digest in (digests or {}).items()}
        if not self.has_store(path):
            return miss(path, config, wanted, *self.nearest(config))
        with open_store(path, config=config, **self.options) as store:
            return look_up(path, store, wanted, known)

    def nearest(self, config: Mapping[str, Any]) -> tuple[CacheEntry | None, tuple[Difference, ...]]:
        """Return the store whose config differs in the fewest attributes, and these. Return None for an empty cache."""
        config = Config(config)
        compared = [(entry, config.diff(entry.config)) for entry in self.entries()]
        return min(compared, key=lambda pair: len(pair[1]), default=(None, ()))

    def stats(self, attributes: Mapping[str, Any] | None = None, /, **more: Any) -> list[StoreUse]:
        """Return the disk use and the usage of each store. Of a store in a bucket, all objects count.

        Parameters
        ----------
        attributes, **more
            Only stores whose config has these attributes. See `find`.
        """
        return uses_of(self.path, self.find(attributes, **more), self.storage_options)

    def prune(
        self,
        attributes: Mapping[str, Any] | None = None,
        /,
        *,
        max_nbytes: int | None = None,
        unused_for: timedelta | float | None = None,
        keep: Iterable[str | os.PathLike[str]] = (),
        dry_run: bool = False,
        **more: Any,
    ) -> list[StoreUse]:
        """Remove stores by age or by size, those used longest ago first.

        A store that a process of this machine has open, or is writing or encoding for, is kept. So is a pinned one.
        Not seen are readers on other machines, programs other than embstore, arrays of a store that was closed, and a
        reader that has not refreshed since a compaction.

        Parameters
        ----------
        attributes, **more
            Only stores whose config has these attributes. See `find`.
        max_nbytes : int, optional
            Bytes on disk for the stores that are kept.
        unused_for : timedelta or float, optional
            Seconds. Stores that were last used longer ago are removed. A run of `embed` is a use, and so is opening
            through the cache, which is recorded at most once an hour. Opening a store by its path is not recorded.
            Without this and `max_nbytes`, the limits of the cache count.
        keep : iterable of path_like
            Stores to keep.
        dry_run : bool
            Return the stores, but do not remove them.

        Returns
        -------
        list of StoreUse
            Removed stores. One that could not be removed is kept, with a logged warning.
        """
        on_this_machine(self.path, "prune")
        max_nbytes, unused_for = check_limits(max_nbytes, unused_for)
        if max_nbytes is None and unused_for is None:
            max_nbytes, unused_for = self.max_nbytes, self.unused_for
        if max_nbytes is None and unused_for is None:
            raise TypeError("prune needs max_nbytes or unused_for; clear() removes all")
        stores = self.stats(attributes, **more)
        kept: set[PurePath] = {Path(path).resolve() for path in keep}
        kept |= {store.path for store in stores if store.pinned or is_open(Path(store.path))}
        chosen = choose_for_removal(stores, now=time.time(), max_nbytes=max_nbytes, unused_for=unused_for, kept=kept)
        left = sum(store.nbytes for store in stores) - sum(store.nbytes for store in chosen)
        if max_nbytes is not None and left > max_nbytes:
            why = "are open, pinned or just written"
            logger.warning("%s: %s are left of at most %s: they %s", self.path, size(left), size(max_nbytes), why)
        return chosen if dry_run else self.remove(chosen, if_open="keep")

    def prune_after(self, written: PurePath) -> None:
        """Prune by the limits of the cache, if it has any, after a run that wrote the store at `written`.

        Logs each removed store, and each that could not be removed. Does nothing on a network file system, where the
        readers of other machines are not seen.
        """
        if self.max_nbytes is None and self.unused_for is None:
            return
        if kind := on_network(on_this_machine(self.path, "prune")):
            logger.warning("%s: not pruned: on %s, readers on other machines are not seen", self.path, kind)
            return
        for store in self.prune(keep=[written], dry_run=True):
            try:
                removed = self.remove([store], if_open="keep")
            except (EmbstoreError, OSError) as error:  # the rows of the run are stored all the same
                logger.warning("%s: not removed: %s", store.path, error)
                continue
            if removed:
                facts = (store.path, store.rows, size(store.nbytes), datetime.fromtimestamp(store.last_used))
                logger.warning("%s: removed by the limits of the cache: %d rows, %s, last used %s", *facts)

    def clear(
        self, attributes: Mapping[str, Any] | None = None, /, *, dry_run: bool = False, **more: Any
    ) -> list[StoreUse]:
        """Remove all stores, or those whose config has these attributes, also open ones. Pinned stores are kept.

        The parameters are those of `prune`.
        """
        on_this_machine(self.path, "clear")
        chosen = []
        for store in self.stats(attributes, **more):
            if store.pinned:
                logger.warning("%s: kept: it is pinned", store.path)
            else:
                chosen.append(store)
        return chosen if dry_run else self.remove(chosen)

    def remove(self, stores: Sequence[StoreUse], *, if_open: IfOpen = "remove") -> list[StoreUse]:
        """Remove these stores, which `stats` returned. See `prune`.

        Parameters
        ----------
        stores : sequence of StoreUse
        if_open : {"remove", "keep"}
            Whether to remove a store that a process has open. Readers keep the chunks that they have mapped.
        """
        remove_leftovers(on_this_machine(self.path, "remove"), _SUFFIX)
        gone = []
        for store in stores:
            try:
                remove_store(store.path, if_open=if_open)
                gone.append(store)
            except (StoreLockedError, NotAStoreError) as error:
                logger.warning("%s: not removed: %s", store.path, error)
        return gone

    def pin(self, attributes: Mapping[str, Any] | None = None, /, **more: Any) -> list[CacheEntry]:
        """Keep stores from being removed, by any process, until `unpin`. See `find` for the parameters.

        Raises
        ------
        CacheMissError
            No store matches.
        ReadOnlyError, StoreLockedError
        """
        on_this_machine(self.path, "pin")
        found = self._some({**(attributes or {}), **more})
        for entry in found:
            pin(Path(entry.path))
        return found

    def unpin(self, attributes: Mapping[str, Any] | None = None, /, **more: Any) -> list[CacheEntry]:
        """Undo `pin`. The parameters and errors are the same."""
        on_this_machine(self.path, "unpin")
        found = self._some({**(attributes or {}), **more})
        for entry in found:
            unpin(Path(entry.path))
        return found

    def _some(self, wanted: Mapping[str, Any]) -> list[CacheEntry]:
        """Return the stores whose config has all wanted attributes. Raise CacheMissError if there are none."""
        if found := self.find(wanted):
            return found
        entries = self.entries()
        reason = f"no store in {self.path} has {dict(wanted)!r}: "
        reason += stored_values(entries, wanted) if entries else "it is empty"
        raise CacheMissError(reason, config=Config(wanted), differences=(), path=self.path)

    def __iter__(self) -> Iterator[CacheEntry]:
        """Iterate over the stores, as `entries` lists them."""
        return iter(self.entries())

    def __len__(self) -> int:
        return len(self.entries())

    def __reduce__(self) -> tuple[Any, ...]:
        options = dict(self.options)
        if "storage_options" in options:
            options["storage_options"] = without_secrets(self.storage_options)
        return *by_name(type(self), self.path), self.__dict__ | {"options": options}

    def __repr__(self) -> str:
        return as_text(self.path, self.entries())

    def _repr_html_(self) -> str:
        rows = [(entry.path.name, f"{entry.rows:,}", as_words(entry.differs)) for entry in self.entries()]
        return html_table(rows, header=("store", "rows", "differs in"), caption=str(self.path))

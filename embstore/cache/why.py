"""Explanations of cache misses, attribute by attribute, as text."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

from embstore._engine.format.arguments import check_choice
from embstore._engine.format.config import ABSENT, shown
from embstore._engine.notebook import ShownAsText
from embstore._engine.pickles import PickledByName
from embstore._engine.read.open_snapshot import exists
from embstore.cache.cache import Cache
from embstore.cache.lookup import Lookup, look_up
from embstore.encoders.defaults import notable_differences
from embstore.store.embedding_store import EmbeddingStore
from embstore.store.open import open as open_store


@dataclass(frozen=True, slots=True, repr=False)
class Explanation(ShownAsText, PickledByName):
    """Why a lookup hits or misses. `str` and `repr` return the text.

    Attributes
    ----------
    lookup : Lookup
    missing_fields : tuple of str
        Wanted fields that the store of this config lacks.
    text : str
    """

    lookup: Lookup
    missing_fields: tuple[str, ...]
    text: str

    @property
    def hit(self) -> bool:
        """Whether a store of this config has the wanted fields."""
        return self.lookup.hit and not self.missing_fields

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__


def why(
    config: Mapping[str, Any],
    cache: Cache | str | os.PathLike[str],
    *,
    fields: Iterable[str] | None = None,
    settings: Literal["notable", "all"] = "notable",
) -> Explanation:
    """Explain why a cache has a config or not, and how the nearest stored config differs.

    Parameters
    ----------
    config : mapping
        All that the values depend on. For `embed` it is ``{**encoder.config, "dataset": source.name}``.
    cache : Cache or path_like
    fields : iterable of str, optional
        Wanted fields.
    settings : {"notable", "all"}
        Whether to leave out of the text the settings that are at the defaults of the model's class on both sides.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> cache = Cache(tempfile.mkdtemp())
    >>> config = {"encoder": {"id": "MIT/ast"}, "sample_rate": 16_000, "duration": 5}
    >>> with cache.open(config, "a") as store:
    ...     _ = store.append(["a:dog"], np.ones((1, 3), np.float32))
    >>> print(why(config | {"duration": 10}, cache))  # doctest: +ELLIPSIS
    miss: no store in ... has this config
    the nearest is ast-....zarr (1 rows); it differs in
      duration  wanted 10  stored 5
    """
    if isinstance(fields, str):
        raise TypeError(f"expected a list of fields, found one: {fields!r}")
    check_choice("settings", settings, ("notable", "all"))
    cache = cache if isinstance(cache, Cache) else Cache(cache)
    path = cache.path_of(config)
    if exists(path, cache.storage_options):
        with open_store(path, config=config, **cache.options) as store:
            return _hit(path, store, list(fields or ()))
    return _miss(config, cache.lookup(config), settings)


def _hit(path: PurePath, store: EmbeddingStore, wanted: list[str]) -> Explanation:
    missing = tuple(name for name in wanted if name not in store.fields)
    has = f"{path.name} has {len(store):,} rows of {', '.join(store.fields) or 'no field yet'}"
    text = f"field miss: {has}, and no {', '.join(missing)}" if missing else f"hit: {has}"
    return Explanation(look_up(path, store, [], {}), missing, text)


def _miss(config: Mapping[str, Any], lookup: Lookup, settings: Literal["notable", "all"]) -> Explanation:
    lines = [f"miss: no store in {lookup.path.parent} has this config"]
    if lookup.nearest is None:
        lines.append("the cache is empty")
    elif not lookup.differences:
        # A store that was renamed or copied in: the cache finds a store by the name that the config gives.
        lines = [f"miss: {lookup.nearest.path} has this config under another name; move it to {lookup.path.name}"]
    else:
        lines.append(f"the nearest is {lookup.nearest.path.name} ({lookup.nearest.rows:,} rows); it differs in")
        told = lookup.differences
        if settings == "notable":
            told = notable_differences(config, lookup.nearest.config, told)
        rows = [(d.name, f"wanted {_shown(d.expected)}", f"stored {_shown(d.found)}") for d in told]
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        lines += [f"  {name:<{widths[0]}}  {wanted:<{widths[1]}}  {stored}" for name, wanted, stored in rows]
        if left := len(lookup.differences) - len(told):
            lines.append(f"  and in {left:,} settings that are at their defaults on both sides")
    return Explanation(lookup, (), "\n".join(lines))


def _shown(value: Any) -> str:
    return "nothing" if value is ABSENT else shown(value)

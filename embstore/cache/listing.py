"""The stores of a cache side by side: the attributes in which the stores of one model differ, and the repr."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from embstore._engine.format.config import ABSENT, Config, as_words, flattened, shown
from embstore.cache.lookup import CacheEntry


def model_of(config: Mapping[str, Any]) -> str:
    """Return the name of the model in a config, or "store"."""
    encoder = config.get("encoder", "store")
    if isinstance(encoder, Mapping):
        encoder = encoder.get("id", encoder.get("name", "store"))
    return str(encoder)


def slug(config: Config) -> str:
    """Return a readable part of a store's name, from its model. The fingerprint makes the name unique."""
    words = re.sub(r"[^a-z0-9.]+", "-", model_of(config).rpartition("/")[2].lower()).strip("-.")
    return words[:48] or "store"


def differing(stores: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return for each config the attributes in which the configs of its model differ: see `CacheEntry.differs`."""
    configs = [flattened(config) for config in stores]
    models = [model_of(config) for config in stores]
    names: dict[str, list[str]] = {}
    for model in models:
        own = [config for config, name in zip(configs, models, strict=True) if name == model]
        every = list(dict.fromkeys(name for config in own for name in config))
        values = {name: {Config(value=config[name]) if name in config else None for config in own} for name in every}
        names.setdefault(model, [name for name in every if len(values[name]) > 1])
    return [
        {name: config[name] for name in names[model] if name in config}
        for config, model in zip(configs, models, strict=True)
    ]


def as_text(path: PurePath, entries: Sequence[CacheEntry]) -> str:
    """Return the repr of a cache."""
    lines = [f"<Cache {str(path)!r}: {'1 store' if len(entries) == 1 else f'{len(entries):,} stores'}>"]
    for entry in entries:
        lines.append(
            "  " + ", ".join(filter(None, [f"{entry.path.name}: {entry.rows:,} rows", as_words(entry.differs)]))
        )
    return "\n".join(lines)


def stored_values(entries: Sequence[CacheEntry], wanted: Mapping[str, Any]) -> str:
    """Return the values that stores have for the wanted attributes, as text for a miss."""
    found: list[str] = []
    for name in wanted:
        values = (_attribute(entry.config, name) for entry in entries)
        texts = sorted({shown(value) for value in values if value is not ABSENT})
        found.append(f"{name} is {', '.join(texts)}" if texts else f"no store has {name}")
    return "; ".join(found)


def _attribute(config: Mapping[str, Any], name: str) -> Any:
    """Return the attribute of a config by its dotted name, or `ABSENT`."""
    found: Any = config
    for part in [name] if name in config else name.split("."):
        found = found.get(part, ABSENT) if isinstance(found, Mapping) else ABSENT
    return found


def has(config: Config, wanted: Mapping[str, Any]) -> bool:
    """Return whether a config has all these attributes. A dotted name is a nested attribute."""
    for name, value in wanted.items():
        found = _attribute(config, name)
        if found is ABSENT or Config(value=found) != Config(value=value):
            return False
    return True

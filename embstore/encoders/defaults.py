"""The attributes of a config that people look at: those that differ from the defaults of the encoder's classes.

``class_defaults.json`` has the defaults of transformers, a line for each type of model and of processor that
`from_pretrained` knows, and those of embstore. They are for display alone: a config always has all attributes.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from embstore._engine.format.config import Config, Difference, flattened
from embstore.encoders.ignored import is_harmless

_SETTINGS: Final = "encoder.settings."
_PROCESSOR: Final = "preprocessing.processor."


def notable_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a config by dotted name, without those of `from_pretrained` that are at their defaults.

    Settings that no value depends on, such as dropout, are left out too. The config of another encoder is returned
    whole.

    Parameters
    ----------
    config : mapping

    Examples
    --------
    >>> settings = {"hidden_size": 384, "hidden_act": "gelu"}
    >>> notable_settings({"encoder": {"id": "m", "type": "bert", "settings": settings}})
    {'encoder.id': 'm', 'encoder.type': 'bert', 'encoder.settings.hidden_size': 384}
    """
    found, defaults = flattened(config), _defaults_of(config)
    return {name: value for name, value in found.items() if not (defaults and _is_default(name, value, defaults))}


def notable_differences(
    expected: Mapping[str, Any], found: Mapping[str, Any], differences: tuple[Difference, ...]
) -> tuple[Difference, ...]:
    """Return those differences of two configs in which a side is not at its default. All, if there are none."""
    names = notable_settings(expected).keys() | notable_settings(found).keys()
    kept = tuple(d for d in differences if d.name in names or any(n.startswith(f"{d.name}.") for n in names))
    return kept or differences


def _is_default(name: str, value: Any, defaults: Mapping[str, Any]) -> bool:
    if name.startswith((_SETTINGS, _PROCESSOR)) and is_harmless(name.rpartition(".")[2]):
        return True
    return name in defaults and Config(value=defaults[name]) == Config(value=value)


def _defaults_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of an encoder of `from_pretrained`, by dotted name. Empty for another encoder."""
    encoder = config.get("encoder")
    if not isinstance(encoder, Mapping) or not isinstance(encoder.get("settings"), Mapping):
        return {}
    table, preprocessing = _table(), config.get("preprocessing")
    processor = preprocessing.get("processor") if isinstance(preprocessing, Mapping) else None
    kind = processor.get("type") if isinstance(processor, Mapping) else None
    return {
        **table["embstore"],
        **{_SETTINGS + name: value for name, value in table.get(str(encoder.get("type")), {}).items()},
        **{_PROCESSOR + name: value for name, value in table.get(str(kind), {}).items()},
    }


@functools.cache
def _table() -> dict[str, dict[str, Any]]:
    text = Path(__file__).with_name("class_defaults.json").read_text(encoding="utf-8")
    return json.loads(text)  # type: ignore[no-any-return]

"""Encoders: what turns samples into embeddings. Names are imported when they are first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embstore.encoders.audio import AudioSettings as AudioSettings
    from embstore.encoders.base import BaseEncoder as BaseEncoder
    from embstore.encoders.base import Encoder as Encoder
    from embstore.encoders.pretrained import PretrainedEncoder as PretrainedEncoder
    from embstore.encoders.pretrained import from_pretrained as from_pretrained
    from embstore.encoders.wrapping import FunctionEncoder as FunctionEncoder
    from embstore.encoders.wrapping import ModuleEncoder as ModuleEncoder

_HOMES = {
    "AudioSettings": "audio",
    "BaseEncoder": "base",
    "Encoder": "base",
    "FunctionEncoder": "wrapping",
    "ModuleEncoder": "wrapping",
    "PretrainedEncoder": "pretrained",
    "from_pretrained": "pretrained",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    """Import a name's module when the name is first used."""
    if name in _HOMES:
        value = getattr(importlib.import_module(f"embstore.encoders.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'embstore.encoders' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the names."""
    return sorted(__all__)

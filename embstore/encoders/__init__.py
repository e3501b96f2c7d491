"""Encoders turn samples into embeddings. Names are imported when they are first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embstore._engine.lazy import lazily

if TYPE_CHECKING:
    from embstore.encoders.audio import AudioSettings as AudioSettings
    from embstore.encoders.base import BaseEncoder as BaseEncoder
    from embstore.encoders.base import Encoder as Encoder
    from embstore.encoders.defaults import notable_settings as notable_settings
    from embstore.encoders.functions import FunctionEncoder as FunctionEncoder
    from embstore.encoders.modules import ModuleEncoder as ModuleEncoder
    from embstore.encoders.pretrained import PretrainedEncoder as PretrainedEncoder
    from embstore.encoders.pretrained import from_pretrained as from_pretrained

_HOMES = {
    "AudioSettings": "audio",
    "BaseEncoder": "base",
    "Encoder": "base",
    "FunctionEncoder": "functions",
    "ModuleEncoder": "modules",
    "PretrainedEncoder": "pretrained",
    "from_pretrained": "pretrained",
    "notable_settings": "defaults",
}

__all__ = [*_HOMES]

if not TYPE_CHECKING:  # it would accept any misspelt name
    __getattr__, __dir__ = lazily(__name__, _HOMES)

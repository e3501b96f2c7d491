"""The kind of a sample, "audio", "video", "image" or "text": of a file by its suffix, of content by its type."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from os import PathLike
from pathlib import PurePath
from typing import Any, Final

import numpy as np

from embstore.encoders.families import Modality

_SUFFIXES: Final = {
    "audio": "aac ac3 aif aifc aiff amr au caf flac m4a mka mp2 mp3 oga ogg opus rf64 snd spx w64 wav weba wma wv",
    "video": "avi m4v mkv mov mp4 mpeg mpg webm wmv",
    "image": "avif bmp gif heic heif jp2 jpeg jpg png ppm tif tiff webp",
    "text": "csv htm html json jsonl md rst tsv txt xml yaml yml",
}
_KINDS: Final = {f".{suffix}": kind for kind, suffixes in _SUFFIXES.items() for suffix in suffixes.split()}
_FITS: Final = {"audio": ("audio", "video"), "image": ("image",), "text": ("text",)}


def kind_of_file(path: str | PathLike[str]) -> str | None:
    """Return the kind of a file by its suffix. None if unknown."""
    return _KINDS.get(PurePath(path).suffix.lower())


def kind_of_content(content: Any) -> str | None:
    """Return the kind of content in memory. None if unknown, as for bytes."""
    pil = sys.modules.get("PIL.Image")  # not imported: an image proves that it is
    if isinstance(content, str):
        return "text"
    if pil is not None and isinstance(content, pil.Image):
        return "image"
    if isinstance(content, tuple) or (isinstance(content, Mapping) and "sampling_rate" in content):
        return "audio"  # with its rate
    pixels = isinstance(content, np.ndarray) and content.dtype == np.uint8 and content.ndim > 1
    return "image" if pixels else None


def fits(kind: str | None, modality: Modality | None) -> bool:
    """Return whether an encoder of a modality takes a kind of sample. It may take an unknown kind."""
    return kind is None or modality is None or kind in _FITS[modality]

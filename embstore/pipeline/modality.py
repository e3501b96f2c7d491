"""The modality of samples: a text encoder must not read recordings, nor store a broken one as a text."""

from __future__ import annotations

from pathlib import PurePath
from typing import Final

from embstore.encoders.families import Modality
from embstore.errors import ModalityError
from embstore.pipeline.run import Samples
from embstore.sources.base import AnySample, FileSample
from embstore.sources.items import LoadedSample

_SUFFIXES: Final = {
    "audio": "aac ac3 aif aifc aiff amr au caf flac m4a mka mp2 mp3 oga ogg opus rf64 snd spx w64 wav weba wma wv",
    "video": "avi m4v mkv mov mp4 mpeg mpg webm wmv",
    "image": "avif bmp gif heic heif jp2 jpeg jpg png ppm tif tiff webp",
    "text": "csv htm html json jsonl md rst tsv txt xml yaml yml",
}
_KINDS: Final = {f".{suffix}": kind for kind, suffixes in _SUFFIXES.items() for suffix in suffixes.split()}
_FITS: Final = {"audio": ("audio", "video"), "image": ("image",), "text": ("text",)}


def _kind(sample: AnySample) -> str | None:
    """Return the kind of a sample, of a file by its suffix: "audio", "video", "image" or "text". None if unknown."""
    if isinstance(sample, FileSample):
        return _KINDS.get(PurePath(sample.path).suffix.lower())
    return sample.kind if isinstance(sample, LoadedSample) else None


def misfit(sample: AnySample, modality: Modality | None) -> str:
    """Return the reason why an encoder can't take a sample, or "" if it may."""
    kind = _kind(sample)
    if kind is None or modality is None or kind in _FITS[modality]:
        return ""
    return f"expected {modality} for this encoder, found {kind}" + (
        " by its suffix" if isinstance(sample, FileSample) else ""
    )


def refuse_other_modality(samples: Samples, modality: Modality | None) -> None:
    """Check that an encoder can take a source.

    Raises
    ------
    ModalityError
        The first sample is of another modality, and no other sample fits.
    """
    first = next(iter(samples.values()), None)
    if first is None or modality is None or not misfit(first, modality):
        return
    if all(misfit(sample, modality) for sample in samples.values()):
        raise ModalityError(first.where, expected=modality, found=str(_kind(first)))

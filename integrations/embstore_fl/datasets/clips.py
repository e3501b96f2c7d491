"""Decodes a clip as a tensor. Decoder and torch are imported on the first call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from embstore.errors import DecodeError
from embstore.sources import FileSample

if TYPE_CHECKING:
    from embstore.encoders import AudioSettings


def decode_clip(file: FileSample, settings: AudioSettings) -> Any:
    """Return a clip as a tensor ``(samples,) float32``. Silence in place of an error would be trained on and stored.

    Raises
    ------
    DecodeError, SampleError
    """
    import torch

    from embstore.encoders.audio import decode_audio

    try:
        return torch.from_numpy(decode_audio(file.read().value, settings))
    except DecodeError as error:
        raise DecodeError(error.reason, path=file.path) from error

"""Decodes a clip as a tensor, and makes the samples of a batch alike. Imports torch on the first call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from embstore.errors import DecodeError
from embstore.sources import FileSample
from embstore_fl.overlay import is_cls

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
        with file.opened() as content:  # a long recording is not read into memory
            return torch.from_numpy(decode_audio(content.value, settings))
    except DecodeError as error:
        raise DecodeError(error.reason, path=file.path) from error


def with_common_names(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the samples of a batch, each with the names that all of them have.

    In a batch that is stored in part, some have no ``audio_emb``. A collate function stacks the values of one name.

    Examples
    --------
    >>> with_common_names([{"label": 1, "audio_emb": 2}, {"label": 3}])
    [{'label': 1}, {'label': 3}]
    """
    common = [name for name in samples[0] if all(name in sample for sample in samples)]
    return [{name: sample[name] for name in common} for sample in samples]


def stackable(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the samples of a batch with common names, and without ``audio_emb`` if some have the CLS token alone.

    A server joins the data sets of nodes of both kinds.
    """
    found = with_common_names(samples)
    if len({is_cls(sample["audio_emb"].shape) for sample in found if "audio_emb" in sample}) > 1:
        for sample in found:
            del sample["audio_emb"]
    return found

"""Convert a sound file, or samples in memory, to one channel of one rate and length. The bits are always the same.

`sound_files` reads the files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Final

import numpy as np

from embstore._engine.format.record import BFLOAT16
from embstore._engine.lazy import imported
from embstore._engine.read.dtypes import as_rows, widen_bfloat16
from embstore.encoders.content import is_undecoded, opened
from embstore.encoders.sound_files import Samples, mean, read_file, scaled
from embstore.errors import ConfigError, DecodeError, ShapeError

_MARGIN: Final = 4096
"""Samples read beyond the cut, in addition to one second: the resampler looks ahead, and must not see the cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioSettings:
    """The form of decoded clips: one channel, with this rate and this length.

    Attributes
    ----------
    sample_rate : int
        Hz.
    duration : float or None
        Seconds. A longer clip is cut at its end, a shorter clip is padded with zeros. None keeps each clip's length.

    Raises
    ------
    ConfigError
        The rate or the duration is not a positive number, or the rate is not a whole number.

    Examples
    --------
    >>> AudioSettings(sample_rate=16_000, duration=0.5).samples
    8000
    """

    sample_rate: int
    duration: float | None = None

    def __post_init__(self) -> None:
        rate = self.sample_rate
        if not _positive(rate) or int(rate) != rate:
            raise ConfigError("sample_rate", rate, "expected a positive whole number of Hz")
        object.__setattr__(self, "sample_rate", int(rate))
        if self.duration is None:
            return
        if not _positive(self.duration):
            raise ConfigError("duration", self.duration, "expected a positive number of seconds, or None")
        object.__setattr__(self, "duration", float(self.duration))

    @property
    def samples(self) -> int | None:
        """Number of samples of a clip, at least 1. None if each clip keeps its length."""
        return None if self.duration is None else max(1, round(self.duration * self.sample_rate))

    def describe(self) -> dict[str, Any]:
        """Return the part of an encoder's config for decoding sound.

        The decoder is part of it, because its rows must not mix with those of another one. libsndfile's samples
        differed by up to 3.7e-2 for MS-ADPCM and by more for Opus recorded below 48 kHz. The decoder's version is not
        part of it. PCM and FLAC are bit for bit the same in every version, and lossy formats differ in the last bits.
        So versions are provenance, like torch's.
        """
        return {
            "sample_rate": self.sample_rate,
            "duration": self.duration,
            "decoder": "pyav",
            "channels": "mean",
            "resampling": "soxr HQ",
            "cut": "start",
            "pad": "zeros at the end",
        }


def _positive(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) < math.inf


def decode_audio(content: Any, settings: AudioSettings) -> Samples:
    """Decode a clip. Sound after the cut is not read, and does not change a bit of the sound before it.

    Parameters
    ----------
    content : bytes, binary file, tuple or mapping
        One of three forms. A file that PyAV reads (WAV, FLAC, Ogg, MP3, AIFF, M4A, MP4, WebM and others), open or as
        its bytes. An open file is read only as far as needed. A pair ``(array, rate)``. A sample of Hugging Face
        `datasets`: ``"array"`` and ``"sampling_rate"``, or ``"bytes"`` and ``"path"``. An array is ``(samples,)`` or
        ``(samples, channels)``. Floats are not scaled, integers of at most 32 bits are scaled to [-1, 1) by their
        dtype's range. A rate is in Hz.
    settings : AudioSettings

    Returns
    -------
    ndarray, (samples,) float32
        The mean of the channels, resampled by soxr in the quality HQ if the rate differs.

    Raises
    ------
    DecodeError
        The content is empty, broken, cut short, without sound, of length zero, or has NaN or infinity.
    SampleError
        The file at the path of a mapping without bytes can't be read.
    ShapeError
        The array has another shape, such as (channels, samples).
    TypeError
        The content is of another kind, such as an array without its rate.
    ImportError
        PyAV or soxr is not installed.
    """
    mono, rate = _mono(content, settings)
    if not len(mono):
        raise DecodeError("zero-length clip")
    if not np.isfinite(mono).all():
        raise DecodeError("NaN or infinity in the samples")
    clip = _resampled(mono, rate, settings.sample_rate)
    if not len(clip):
        raise DecodeError(f"zero-length clip: nothing is left of {len(mono)} sample(s) at {rate:g} Hz")
    return _fitted(clip, settings.samples)


def _mono(content: Any, settings: AudioSettings) -> tuple[Samples, float]:
    """Return the needed part of the mean of the channels, and its rate."""
    if isinstance(content, tuple) and len(content) == 2:
        return _from_array(*content, settings)
    if isinstance(content, Mapping) and content.get("array") is not None:
        return _from_array(content["array"], content.get("sampling_rate"), settings)
    if is_undecoded(content):
        with opened(content) as file:
            return read_file(file, lambda rate: _needed(rate, settings))
    raise TypeError(
        f'expected the bytes of a file, (array, rate), or a mapping with "array" and "sampling_rate" or with "bytes" '
        f'or "path", found {type(content).__name__}; give samples as (array, rate): their rate can\'t be guessed'
    )


def _needed(rate: float, settings: AudioSettings) -> int | None:
    """Return the number of samples, at a rate in Hz, that the clip depends on. None for all samples."""
    if settings.samples is None or rate == settings.sample_rate:
        return settings.samples
    return math.ceil(settings.samples * rate / settings.sample_rate) + math.ceil(rate) + _MARGIN


# -- arrays -----------------------------------------------------------------------------------


def _from_array(array: Any, rate: Any, settings: AudioSettings) -> tuple[Samples, float]:
    if isinstance(rate, bool) or not isinstance(rate, Real):
        raise TypeError(f"expected a sample rate in Hz beside the array, found {rate!r}")
    rate = float(rate)
    if not _positive(rate):
        raise DecodeError(f"a sample rate of {rate:g} Hz")
    values, dtype = as_rows(array)
    if dtype == BFLOAT16:
        values = widen_bfloat16(values)
    frames = values[:, np.newaxis] if values.ndim == 1 else values
    if frames.ndim != 2 or frames.shape[1] > frames.shape[0] > 0:
        raise ShapeError("audio", expected="(samples,) or (samples, channels)", found=values.shape)
    if not frames.size:
        return np.empty(0, np.float32), rate
    return mean(scaled(frames[: _needed(rate, settings)])), rate


# -- rate and length --------------------------------------------------------------------------


def _resampled(mono: Samples, rate: float, wanted: int) -> Samples:
    if rate == wanted:
        return mono
    resampled: Samples = imported("soxr", "audio", "to resample sound").resample(mono, rate, wanted, quality="HQ")
    return resampled


def _fitted(clip: Samples, samples: int | None) -> Samples:
    """Cut a clip at its end, or pad its end with zeros."""
    if samples is None or len(clip) == samples:
        return clip
    fitted = np.zeros(samples, np.float32)
    kept = min(len(clip), samples)
    fitted[:kept] = clip[:kept]
    return fitted

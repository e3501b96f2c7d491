"""A sound file, or samples in memory, to one channel at one rate and of one length; the same bits every time.

soundfile decides what a file holds. PyAV reads only what soundfile can't, so that whether it is installed never
changes a value: a file is either read in one way, or not at all.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embstore.errors import ConfigError, DecodeError, SampleError, ShapeError
from embstore.ingest import as_rows, widen_bfloat16
from embstore.schema import BFLOAT16

__all__ = ["AudioSettings", "decode_audio", "file_bytes"]

Samples = NDArray[np.float32]

_BLOCK: Final = 2**20
"""Values decoded at a time: a header can claim 2**36 samples, so memory follows what is there, not what it says."""

_MARGIN: Final = 4096
"""Samples read past the cut beside one second: the resampler looks ahead, and the cut must not show in its output."""

_LENIENCE: Final = 2 * 1152
"""Samples that a file may lack of what it states: some MP3 encoders count the frame that holds the count."""

_NOT_SOUNDFILES: Final = frozenset((1, 4))
"""libsndfile's codes of a format and of an encoding that it does not know; others mean that a file is broken."""

_HEAD: Final = 2048
"""Bytes in which an MP3 file's first frame lies, which may state the number of frames (as Xing's encoder first did)."""

_UNSTATED: Final = 2**63 - 1
"""The length that libsndfile gives a FLAC file whose header leaves it open, as one written to a pipe does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioSettings:
    """What clips are made into: one channel, at this rate, of this length.

    Attributes
    ----------
    sample_rate : int
        Hz.
    duration : float or None
        Seconds: a longer clip is cut at its end, a shorter one padded with zeros. None leaves each its length.

    Raises
    ------
    ConfigError
        One of them is not a positive number, or the rate is not a whole one.

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
        """Number of samples of a clip, at least 1; None, where each keeps its length."""
        return None if self.duration is None else max(1, round(self.duration * self.sample_rate))

    def describe(self) -> dict[str, Any]:
        """Return what of this belongs in an encoder's config. Versions of the libraries are provenance."""
        return {
            "sample_rate": self.sample_rate,
            "duration": self.duration,
            "channels": "mean",
            "resampling": "soxr HQ",
            "cut": "start",
            "pad": "zeros at the end",
        }


def _positive(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) < math.inf


def decode_audio(content: Any, settings: AudioSettings) -> Samples:
    """Decode a clip. What lies after the cut is not read, and does not change a bit of what lies before.

    Parameters
    ----------
    content : bytes, tuple or mapping
        The bytes of a file (WAV, FLAC, OGG, MP3 and what else soundfile reads; M4A, MP4, WebM with PyAV); a pair
        ``(array, rate)``; or what Hugging Face's datasets give: ``"array"`` and ``"sampling_rate"``, or ``"bytes"``
        and ``"path"``. An array is ``(samples,)`` or ``(samples, channels)``: floats as they are, integers of at
        most 32 bits scaled to [-1, 1) by their dtype's range. A rate is in Hz.
    settings : AudioSettings

    Returns
    -------
    ndarray, (samples,) float32
        The mean of the channels, resampled by soxr in the quality HQ where the rate differs.

    Raises
    ------
    DecodeError
        Empty, broken, cut short, without sound, of length zero, or with NaN or infinity.
    SampleError
        The path of a mapping without bytes can't be read.
    ShapeError
        An array of another shape, such as (channels, samples).
    TypeError
        Content of another kind, such as an array without its rate.
    ImportError
        soundfile or soxr is not installed.
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


def file_bytes(content: Mapping[str, Any]) -> bytes:
    """Return the bytes of an undecoded sample of Hugging Face's: ``"bytes"``, else those of the file at ``"path"``.

    Raises
    ------
    SampleError
        The file can't be read.
    TypeError
        The mapping has neither.
    """
    if content.get("bytes") is not None:
        return bytes(content["bytes"])
    if content.get("path") is None:
        raise TypeError(f'expected a mapping with "bytes" or "path", found {sorted(map(str, content))}')
    path = Path(content["path"])
    try:
        return path.read_bytes()
    except OSError as error:
        raise SampleError(path, error.strerror or str(error)) from error


def _mono(content: Any, settings: AudioSettings) -> tuple[Samples, float]:
    """Return the mean of the channels as far as it is needed, and its rate."""
    if isinstance(content, tuple) and len(content) == 2:
        return _from_array(*content, settings)
    if isinstance(content, Mapping):
        if content.get("array") is not None:
            return _from_array(content["array"], content.get("sampling_rate"), settings)
        content = file_bytes(content)
    if isinstance(content, bytes | bytearray | memoryview):
        return _from_file(bytes(content), settings)
    raise TypeError(
        f'expected the bytes of a file, (array, rate), or a mapping with "array" and "sampling_rate" or with "bytes" '
        f'or "path", found {type(content).__name__}; give samples as (array, rate): their rate can\'t be guessed'
    )


def _needed(rate: float, settings: AudioSettings) -> int | None:
    """Return how many samples at a rate the clip depends on; None for all."""
    if settings.samples is None or rate == settings.sample_rate:
        return settings.samples
    return math.ceil(settings.samples * rate / settings.sample_rate) + math.ceil(rate) + _MARGIN


def _mean(frames: np.ndarray[Any, Any]) -> Samples:
    """Return the mean over channels, added in their order: NumPy's own depends on how it vectorises."""
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found, and named, as infinity
        total: Samples = frames[:, 0].astype(np.float32)
        for channel in range(1, frames.shape[1]):
            total += frames[:, channel].astype(np.float32)
        if frames.shape[1] > 1:
            total /= np.float32(frames.shape[1])
    return total


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
    return _mean(_scaled(frames[: _needed(rate, settings)])), rate


def _scaled(frames: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return samples as floats, integers scaled to [-1, 1)."""
    kind, width = frames.dtype.kind, frames.dtype.itemsize
    if kind == "f":
        return frames
    if kind not in "iu" or width > 4:
        # Nothing records 64 bits: such arrays hold numbers of 16, and would come out as silence.
        raise TypeError(f"expected floats, or integers of 8, 16 or 32 bits, found {frames.dtype}; cast the array")
    half = 2.0 ** (8 * width - 1)
    floats = frames.astype(np.float64)
    if kind == "u":
        floats -= half
    floats /= half
    return floats


# -- files ------------------------------------------------------------------------------------


def _from_file(data: bytes, settings: AudioSettings) -> tuple[Samples, float]:
    if not data:
        raise DecodeError("the file is empty")
    try:
        import soundfile
    except ImportError as error:
        raise ImportError("reading sound files needs soundfile: pip install 'embstore[audio]'") from error
    try:
        file = soundfile.SoundFile(io.BytesIO(data))
    except soundfile.LibsndfileError as error:
        if error.code in _NOT_SOUNDFILES:
            return _with_av(data, settings, error.error_string)
        raise DecodeError(f"not decodable: {error.error_string}") from error
    with file:
        if not _states_length(file, data):
            return _with_av(data, settings, f"the {file.format} file does not state its length")
        try:
            return _with_soundfile(file, settings), float(file.samplerate)
        except soundfile.SoundFileRuntimeError as error:
            raise DecodeError(f"not decodable: {getattr(error, 'error_string', error)}") from error


def _with_soundfile(file: Any, settings: AudioSettings) -> Samples:
    wanted = _needed(file.samplerate, settings)
    end = file.frames if wanted is None else min(wanted, file.frames)
    step = max(1, _BLOCK // file.channels)
    parts: list[Samples] = []
    done = 0
    while done < end:
        frames = file.read(min(step, end - done), dtype="float32", always_2d=True)
        if not len(frames):
            break
        parts.append(_mean(frames))
        done += len(frames)
    if done < end - _LENIENCE:
        raise DecodeError(f"it is cut short: it states {file.frames:,} samples and ends after {done:,}")
    return _joined(parts)


def _states_length(file: Any, data: bytes) -> bool:
    """Tell whether a file says how long it is.

    libsndfile guesses the length of an MP3 file that does not, from the bit rate of its first frame, and stops
    there: a third of a clip of variable rate was all that it gave.
    """
    if file.frames == _UNSTATED:
        return False
    if not file.subtype.startswith("MPEG"):
        return True
    head = data[_after_tags(data) :][:_HEAD]
    places = [place for place in (head.find(b"Xing"), head.find(b"Info")) if place >= 0]
    return any(len(head) > place + 7 and head[place + 7] & 1 for place in places)


def _after_tags(data: bytes) -> int:
    """Return where an MP3 file's first frame begins: behind its ID3 tags, whose sizes are four times seven bits."""
    start = 0
    while data[start : start + 3] == b"ID3" and len(data) >= start + 10:
        size = 0
        for byte in data[start + 6 : start + 10]:
            size = size << 7 | byte & 0x7F
        start += 10 + size
    return start


def _with_av(data: bytes, settings: AudioSettings, why: str) -> tuple[Samples, float]:
    """Decode with PyAV what soundfile can't, for a reason that is given."""
    try:
        import av
    except ImportError as error:
        raise DecodeError(f"not an audio file that soundfile reads ({why}); pip install 'embstore[av]'") from error
    # Titles in another encoding are no reason to refuse a clip; from 19 on, PyAV does not.
    lenient: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.partition(".")[0]) < 19 else {}
    try:
        with av.open(io.BytesIO(data), "r", **lenient) as container:
            if not container.streams.audio:
                raise DecodeError("no audio stream")
            return _joined_frames(container.decode(container.streams.audio[0]), settings)
    except av.error.FFmpegError as error:
        raise DecodeError(f"not decodable: {error.strerror or error} (soundfile: {why})") from error


def _joined_frames(decoded: Iterable[Any], settings: AudioSettings) -> tuple[Samples, float]:
    """Return the mean of the channels of PyAV's frames, as far as it is needed, and its rate."""
    parts: list[Samples] = []
    done, rate, wanted = 0, 0, None
    for frame in decoded:
        if not parts:
            rate = frame.sample_rate
            wanted = _needed(rate, settings)
        if frame.sample_rate != rate:
            raise DecodeError(f"its sample rate changes from {rate} to {frame.sample_rate} Hz")
        try:
            values = frame.to_ndarray()
        except ValueError as error:  # samples of 64 bits
            raise DecodeError(f"not decodable: {error}") from error
        frames = values.T if frame.format.is_planar else values.reshape(-1, frame.layout.nb_channels)
        parts.append(_mean(_scaled(frames)))
        done += len(frames)
        if wanted is not None and done >= wanted:
            break
    return _joined(parts)[:wanted], float(rate)


def _joined(parts: list[Samples]) -> Samples:
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


# -- rate and length --------------------------------------------------------------------------


def _resampled(mono: Samples, rate: float, wanted: int) -> Samples:
    if rate == wanted:
        return mono
    try:
        import soxr
    except ImportError as error:
        raise ImportError("resampling needs soxr: pip install 'embstore[audio]'") from error
    resampled: Samples = soxr.resample(mono, rate, wanted, quality="HQ")
    return resampled


def _fitted(clip: Samples, samples: int | None) -> Samples:
    """Cut a clip at its end, or pad it there with zeros."""
    if samples is None or len(clip) == samples:
        return clip
    fitted = np.zeros(samples, np.float32)
    kept = min(len(clip), samples)
    fitted[:kept] = clip[:kept]
    return fitted

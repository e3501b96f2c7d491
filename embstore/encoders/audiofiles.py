"""A sound file's bytes to the mean of its channels, at its own rate, and no further than is needed.

soundfile decides what a file holds. PyAV reads only what soundfile can't, so that whether it is installed never
changes a value: a file is either read in one way, or not at all. Clips in memory, and the rate and length to which all
are brought, are `audio`'s.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embstore.errors import DecodeError

__all__ = ["Needed", "Samples", "mean", "read_file", "scaled"]

Samples = NDArray[np.float32]
Needed = Callable[[float], int | None]
"""How many samples at a rate in Hz are needed; None for all."""

_BLOCK: Final = 2**20
"""Values decoded at a time: a header can claim 2**36 samples, so memory follows what is there, not what it says."""

_LENIENCE: Final = 2 * 1152
"""Samples that a file may lack of what it states: some MP3 encoders count the frame that holds the count."""

_NOT_SOUNDFILES: Final = frozenset((1, 4))
"""libsndfile's codes of a format and of an encoding that it does not know; others mean that a file is broken."""

_HEAD: Final = 2048
"""Bytes in which an MP3 file's first frame lies, which may state the number of frames (as Xing's encoder first did)."""

_UNSTATED: Final = 2**63 - 1
"""The length that libsndfile gives a FLAC file whose header leaves it open, as one written to a pipe does."""


def read_file(data: bytes, needed: Needed) -> tuple[Samples, float]:
    """Return the samples of a sound file, and their rate.

    Parameters
    ----------
    data : bytes
        WAV, FLAC, OGG, MP3 and what else soundfile reads; M4A, MP4, WebM with PyAV.
    needed : callable
        Takes the file's rate in Hz; returns how many samples to read at most, or None for all.

    Returns
    -------
    ndarray, (samples,) float32
        The mean of the channels.
    float
        Hz.

    Raises
    ------
    DecodeError
        Empty, broken, cut short, or without sound.
    ImportError
        soundfile is not installed.
    """
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
            return _with_av(data, needed, error.error_string)
        raise DecodeError(f"not decodable: {error.error_string}") from error
    with file:
        if not _states_length(file, data):
            return _with_av(data, needed, f"the {file.format} file does not state its length")
        try:
            return _with_soundfile(file, needed), float(file.samplerate)
        except soundfile.SoundFileRuntimeError as error:
            raise DecodeError(f"not decodable: {getattr(error, 'error_string', error)}") from error


def _with_soundfile(file: Any, needed: Needed) -> Samples:
    wanted = needed(file.samplerate)
    end = file.frames if wanted is None else min(wanted, file.frames)
    step = max(1, _BLOCK // file.channels)
    parts: list[Samples] = []
    done = 0
    while done < end:
        frames = file.read(min(step, end - done), dtype="float32", always_2d=True)
        if not len(frames):
            break
        parts.append(mean(frames))
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


def _with_av(data: bytes, needed: Needed, why: str) -> tuple[Samples, float]:
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
            return _joined_frames(container.decode(container.streams.audio[0]), needed)
    except av.error.FFmpegError as error:
        raise DecodeError(f"not decodable: {error.strerror or error} (soundfile: {why})") from error


def _joined_frames(decoded: Iterable[Any], needed: Needed) -> tuple[Samples, float]:
    """Return the mean of the channels of PyAV's frames, as far as it is needed, and its rate."""
    parts: list[Samples] = []
    done, rate, wanted = 0, 0, None
    for frame in decoded:
        if not parts:
            rate = frame.sample_rate
            wanted = needed(rate)
        if frame.sample_rate != rate:
            raise DecodeError(f"its sample rate changes from {rate} to {frame.sample_rate} Hz")
        try:
            values = frame.to_ndarray()
        except ValueError as error:  # samples of 64 bits
            raise DecodeError(f"not decodable: {error}") from error
        frames = values.T if frame.format.is_planar else values.reshape(-1, frame.layout.nb_channels)
        parts.append(mean(scaled(frames)))
        done += len(frames)
        if wanted is not None and done >= wanted:
            break
    return _joined(parts)[:wanted], float(rate)


def _joined(parts: list[Samples]) -> Samples:
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


# -- samples ----------------------------------------------------------------------------------


def mean(frames: np.ndarray[Any, Any]) -> Samples:
    """Return the mean over channels, added in their order: NumPy's own depends on how it vectorises.

    Parameters
    ----------
    frames : ndarray, (samples, channels)

    Returns
    -------
    ndarray, (samples,) float32
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found, and named, as infinity
        total: Samples = frames[:, 0].astype(np.float32)
        for channel in range(1, frames.shape[1]):
            total += frames[:, channel].astype(np.float32)
        if frames.shape[1] > 1:
            total /= np.float32(frames.shape[1])
    return total


def scaled(frames: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return samples as floats, integers scaled to [-1, 1).

    Raises
    ------
    TypeError
        Integers of 64 bits, or no numbers.
    """
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

"""Decode a sound file to the mean of its channels, at its own rate, only as far as needed.

PyAV (FFmpeg) decodes every format. With a second decoder, the values of a file would depend on the decoder that is
installed. `sound_headers` reads the lengths that files state. `audio` takes samples in memory, and changes rate and
length.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from embstore._engine.lazy import cached_property, imported
from embstore.encoders.content import FilePart, kind_of
from embstore.encoders.sound_frames import frame_size, mp3_seconds
from embstore.encoders.sound_headers import extent, filled, has_hole, is_joined, ogg_ends, ogg_links
from embstore.errors import DecodeError

Samples = NDArray[np.float32]
Needed = Callable[[float], int | None]
"""Returns the number of samples needed at a rate in Hz. None for all samples."""

_EXACT: Final = frozenset(("au", "caf", "flac", "wv", "tta", "ape", "tak", "nistsphere", "dsf"))
"""FFmpeg's names of formats whose header states their number of samples."""

_NEARLY: Final = frozenset(("mp3", "ogg", "matroska,webm", "flv", "rm", "apm", "kvag"))
"""Formats that state a length up to a frame or two. For all other formats FFmpeg may guess it from the bit rate."""

_LENIENCE: Final = 2 * 1152
"""Samples that a file of these formats may lack: some MP3 encoders count the frame that holds the count."""

_ALAC: Final = 4096
"""Samples of a frame of ALAC. FFmpeg writes the length in whole frames into CAF."""

_FRAMED: Final = ("mp3", "ac3", "eac3", "mpegts", "mpeg")
"""Formats that state no length, but a size in each frame."""

_ROUNDING: Final = 16
"""Samples that a file of other formats may lack: FFmpeg returns some lengths in units of its own."""

_MANY: Final = 8
"""From this number of channels on, PyAV 18.1 reads beyond the list of a frame's planes, and crashes."""


def read_file(file: BinaryIO, needed: Needed) -> tuple[Samples, float]:
    """Return the samples of a sound file, and their rate.

    Parameters
    ----------
    file : binary file
        WAV, FLAC, Ogg, MP3, AIFF, M4A, MP4, WebM and others that FFmpeg recognises by their content. It is read only
        as far as needed.
    needed : callable
        Takes the file's rate in Hz. Returns the most samples to read, or None for all samples.

    Returns
    -------
    ndarray, (samples,) float32
        The mean of the channels.
    float
        Hz.

    Raises
    ------
    DecodeError
        The file is empty, broken, cut short, or without sound.
    ImportError
        PyAV is not installed.
    """
    data = FilePart(file)
    if not len(data):
        raise DecodeError("the file is empty")
    av = imported("av", "audio", "to read sound files")
    parts: list[Samples] = []
    done, rate, wanted = 0, 0, None
    try:
        with closing(_decoded(data)) as decoded:
            for frame_rate, mono in decoded:
                if not parts:
                    rate = frame_rate
                    wanted = needed(rate)
                if frame_rate != rate:
                    raise DecodeError(f"its sample rate changes from {rate} to {frame_rate} Hz")
                parts.append(mono)
                done += len(mono)
                if wanted is not None and done >= wanted:
                    break
    except av.error.FFmpegError as error:
        kind = "" if done else kind_of(data[:512])
        raise DecodeError(f"not decodable: {_reason(error)}{kind}") from error
    return np.concatenate(parts)[:wanted] if parts else np.empty(0, np.float32), float(rate)


def _decoded(data: FilePart) -> Generator[tuple[int, Samples], None, None]:
    """Yield a file's sound in blocks: the rate in Hz, and the mean of the channels."""
    import av

    # A playlist must not make FFmpeg open other files: FFmpeg read a text "ffconcat" as the file that it names.
    options: dict[str, Any] = {"options": {"protocol_whitelist": "none"}}
    if int(av.__version__.partition(".")[0]) < 19:
        options["metadata_errors"] = "ignore"  # PyAV from 19 on ignores titles in another encoding
    # FFmpeg drops the links of a chain of Ogg streams whose codec, rate or channels differ from the first.
    for part in ogg_links(data) if data.startswith(b"OggS") else (data,):
        try:
            with av.open(filled(part), "r", **options) as container:
                if not container.streams.audio:
                    raise DecodeError(f"no audio stream{kind_of(part[:512])}")
                if container.streams.audio[0].codec_context is None:
                    raise DecodeError("not decodable: FFmpeg does not know its encoding")
                yield from _Reading(container, part).blocks()
        except av.error.FFmpegError:
            _refuse_cut(part, 0.0, broken=True)  # MP4 that lacks its end can't even be opened
            raise


class _Reading:
    """One file, or one link of a chain, while it is decoded."""

    def __init__(self, container: Any, data: FilePart) -> None:
        self.container = container
        self.format: str = container.format.name
        self.stream = container.streams.audio[0]
        self.alone = len(container.streams) == 1  # FFmpeg takes broken parts of FLV for further streams
        self.codec: str = self.stream.codec_context.name  # PyAV 19 crashes on it after the codec failed to open
        self.data = data
        self.done = 0
        self.rate = 0
        self.error: Exception | None = None
        self.last = b"", 0
        """The first bytes of the last frame, and its size."""

    def blocks(self) -> Iterator[tuple[int, Samples]]:
        """Yield the rate and the mean of the channels of each frame. Raise DecodeError at the end if sound is missing.

        A reader that stops earlier has all the sound that it needs. Damage after that point is not looked for.
        """
        self.refuse_misread()
        # CRCs are checked, and a wrong one is an error: else FFmpeg gives a damaged FLAC frame as sound.
        options = {"err_detect": "crccheck+explode"}
        # FFmpeg cuts a Vorbis stream of one page by up to 223 samples too many or too few, and ALAC in CAF by up to
        # 4,095 too many. So FFmpeg's cutting is off, and the length that the file states is applied here. FFmpeg reads
        # AU beyond its sound. The first block of Vorbis only leads in to the second.
        kind = (self.format, self.codec)
        exact = kind in (("ogg", "vorbis"), ("caf", "alac")) or self.format == "au"
        if exact:
            options["flags2"] = "+skip_manual"
        self.stream.codec_context.options = options
        self.stream.codec_context.open(strict=False)  # else each packet opens it, and PyAV 19 does so only once
        frames = self.frames()
        if kind == ("ogg", "vorbis"):
            next(frames, None)
        stated = self.stated_seconds() if exact else None
        for frame in frames:
            mono = mean(scaled(_values(frame)))
            self.rate = frame.sample_rate
            if stated:
                mono = mono[: max(0, round(stated * self.rate) - self.done)]
            self.done += len(mono)
            yield self.rate, mono
        self.check_end()

    def refuse_misread(self) -> None:
        """Raise DecodeError for encodings that FFmpeg takes for others, and turns into noise.

        Measured against sound written by libsndfile (Sun's G.72x code), with 21 to 30 dB of signal to noise there:
        19 dB at 32 kbit/s and 5 dB at 40 kbit/s in AU, 5 dB in WAV of the tag 0x40. The others are noise.
        """
        kind = (self.format, self.codec)
        # PyAV takes a tag for ASCII, and can't return others: it is asked for where all tags are ASCII.
        tag = self.stream.codec_context.codec_tag[0] if self.codec in ("g726", "amr_nb", "amrnb") else ""
        if kind == ("au", "g726le") or tag == "@":
            misread = f"G.721 and G.723 in {self.format.upper()}"
        elif self.format == "wav" and tag == "8":
            misread = "NMS ADPCM"
        elif self.format == "wav" and self.data.startswith(b"RIFX") and self.codec.endswith("le"):
            misread = "WAV of big-endian samples (RIFX)"  # it keeps the order of bytes of RIFF
        elif self.format == "adp":
            misread = "stereo samples without a header"  # two equal channels look like the ADPCM of a game console
        else:
            return
        raise DecodeError(f"FFmpeg does not decode {misread} correctly; convert it")

    def frames(self) -> Iterator[Any]:
        """Yield the frames of all packets that can be decoded. Keep the error of the first packet that can't.

        An MP3 file with a tag between two songs, or with zeros at its end, is whole though a packet is broken. Its
        stated length decides.
        """
        import av

        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
                decoded = [] if packet is None else packet.decode()
            except (av.error.FFmpegError, IndexError) as error:  # IndexError: a stream begins later
                self.error = self.error or error  # if reading failed, no packet follows
                continue
            if packet is None:
                return
            if self.format in _FRAMED and packet.size:
                self.last = bytes(packet)[:6].ljust(6, b"\0"), packet.size
            yield from decoded

    def check_end(self) -> None:
        """Raise DecodeError if a file that was read to its end lacks sound that it states, or has a broken packet."""
        rate = self.rate or self.stream.rate or 0
        found = self.done / rate if rate else 0.0
        _refuse_cut(self.data, found, broken=self.error is not None)
        if is_joined(self.data):
            raise DecodeError(f"it is several files in one, and FFmpeg reads the first ({found:.3f} s); split it")
        if has_hole(self.data):
            raise DecodeError(
                f"it is damaged: packets are overwritten, which FFmpeg passes over ({found:.3f} s are left)"
            )
        stated = self.stated_seconds()
        if stated is None and (whole := frame_size(self.last[0])) > self.last[1]:
            raise DecodeError(f"it is cut short: its last frame, at {found:.3f} s, has {self.last[1]} of {whole} bytes")
        lenience = _LENIENCE if self.format in _NEARLY and self.error is None else _ROUNDING
        lenience += _LENIENCE * max(0, len(self.counted) - 1)
        lenience += _ALAC if (self.format, self.codec) == ("caf", "alac") else 0
        if stated is not None and self.done < stated * rate - lenience:
            raise DecodeError(
                f"it is cut short or damaged: it states {round(stated * rate):,} samples ({stated:.3f} s) "
                f"and has {self.done:,} ({found:.3f} s)"
            )
        if self.error is not None and (self.format != "mp3" or stated is None):
            raise DecodeError(f"not decodable: {_reason(self.error)} (after {found:.3f} s)") from self.error

    @cached_property
    def counted(self) -> list[float]:
        """The length in seconds of each of the MP3 files in a file. Empty for other formats."""
        return mp3_seconds(self.data) if self.format == "mp3" else []

    def stated_seconds(self) -> float | None:
        """Return the length that the file states, as FFmpeg reads it. None where FFmpeg would guess."""
        stream = self.stream
        if self.format not in _EXACT and self.format not in _NEARLY:
            return None
        stated = None
        if stream.duration is not None and stream.time_base:
            stated = float(stream.duration * stream.time_base)
        elif self.container.duration is not None and self.alone:
            stated = self.container.duration / 1e6
        if stated is not None and self.format == "ogg" and self.codec != "vorbis":
            # A recording of a broadcast begins late. Only for Vorbis does FFmpeg count from its beginning.
            stated -= max(0.0, float((stream.start_time or 0) * stream.time_base))
            if self.codec == "opus":  # the samples that its header excludes: 312 or 3,840 are usual, 65,535 the most
                stated -= int.from_bytes((stream.codec_context.extradata or b"")[10:12], "little") / 48_000
            return stated
        if stated is not None and self.format == "mp3":
            # For joined files FFmpeg guesses the length from the bit rate.
            counted = self.counted
            return sum(counted) if len(counted) > 1 else min(*counted, stated) if counted else None
        return stated


def _refuse_cut(data: FilePart, found: float, *, broken: bool) -> None:
    """Raise DecodeError if a file, of which some seconds were found, is shorter than its header states.

    Of a file with a broken packet, not a single byte may be missing.
    """
    size = extent(data)
    if size is not None and (size.cut or (broken and size.present < size.stated)):
        stated, present = f"{size.stated:,} bytes of sound", f"{size.present:,}"
        if found and size.present:
            stated += f" (about {found * size.stated / size.present:.3f} s)"
            present += f" ({found:.3f} s)"
        raise DecodeError(f"it is cut short: it states {stated} and has {present}")
    if data.startswith(b"OggS") and not ogg_ends(data):
        raise DecodeError(f"it is cut short: it has no end-of-stream page, and ends after {found:.3f} s")


def _reason(error: Any) -> str:
    return str(getattr(error, "strerror", None) or error)


def _values(frame: Any) -> np.ndarray[Any, Any]:
    """Return a frame's samples, ``(samples, channels)``. PyAV has no dtype for 64 bits, which become floats."""
    channels = frame.layout.nb_channels
    if frame.format.name == "s64":
        return np.frombuffer(frame.planes[0], np.int64)[: frame.samples * channels].reshape(-1, channels) / 2.0**63
    if frame.format.is_planar and channels >= _MANY:  # the same values, with the channels side by side
        import av

        (frame,) = av.AudioResampler(frame.format.packed.name, frame.layout, frame.sample_rate).resample(frame)
    values: np.ndarray[Any, Any] = frame.to_ndarray()
    return values.T if frame.format.is_planar else values.reshape(-1, channels)


# -- samples ----------------------------------------------------------------------------------


def mean(frames: np.ndarray[Any, Any]) -> Samples:
    """Return the mean over channels, added in their order. The order of NumPy's mean depends on its vectorisation.

    Parameters
    ----------
    frames : ndarray, (samples, channels)

    Returns
    -------
    ndarray, (samples,) float32
    """
    with np.errstate(over="ignore", invalid="ignore"):  # an overflow is infinity, which `decode_audio` reports
        total: Samples = frames[:, 0].astype(np.float32)
        for channel in range(1, frames.shape[1]):
            total += frames[:, channel].astype(np.float32, copy=False)
        if frames.shape[1] > 1:
            total /= np.float32(frames.shape[1])
    return total


def scaled(frames: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return samples as floats, integers scaled to [-1, 1).

    Raises
    ------
    TypeError
        The samples are integers of 64 bits, or not numbers.
    """
    kind, width = frames.dtype.kind, frames.dtype.itemsize
    if kind == "f":
        return frames
    if kind not in "iu" or width > 4:
        # No recorder writes 64 bits. Such arrays hold numbers of 16 bits, and would become silence.
        raise TypeError(f"expected floats, or integers of 8, 16 or 32 bits, found {frames.dtype}; cast the array")
    half = 2.0 ** (8 * width - 1)
    # One rounding only: scaling by a power of two and the subtraction of 16 bits are exact.
    floats: np.ndarray[Any, Any] = frames.astype(np.float64 if frames.dtype == np.uint32 else np.float32)
    if kind == "u":
        floats -= half
    floats *= 1 / half
    return floats

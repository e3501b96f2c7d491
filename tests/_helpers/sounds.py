"""Sound files of many formats, written by soundfile and by PyAV."""

import io
import tempfile
from pathlib import Path

import numpy as np

RATE = 44_100


def tone(hertz, seconds=1.0, rate=RATE, *, level=0.5):
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def sound_file(samples, rate=RATE, kind="WAV", subtype=None, **options):
    """Write a file with soundfile; samples are ``(n,)`` or ``(n, channels)``."""
    import soundfile

    file = io.BytesIO()
    channels = 1 if np.ndim(samples) == 1 else samples.shape[1]
    with soundfile.SoundFile(file, "w", rate, channels, subtype, format=kind, **options) as out:
        for start in range(0, max(1, len(samples)), 2**19):  # libsndfile crashes on more of Vorbis at a time
            out.write(samples[start : start + 2**19])
    return file.getvalue()


class _Pipe:
    """A file that can't be read or gone back in."""

    def __init__(self, file):
        self.write = file.write


def av_file(samples, container, codec, rate=48_000, layout="mono", *, pipe=False, **options):
    """Write a file with PyAV; samples are ``(channels, n) float32``, options those of the container."""
    import av

    # Into a named file: MP4 whose index comes first is read again while it is written.
    with tempfile.NamedTemporaryFile() as file:
        target = _Pipe(file) if pipe else file.name
        with av.open(target, "w", format=container, options=options) as out:
            stream = out.add_stream(codec, rate=rate)
            stream.codec_context.layout = layout
            if codec.startswith("wma"):
                stream.bit_rate = 128_000  # it has no default
            frame = av.AudioFrame.from_ndarray(np.atleast_2d(samples), format="fltp", layout=layout)
            frame.sample_rate, frame.pts = rate, 0
            fit = av.AudioResampler(
                stream.codec_context.format, layout, rate, frame_size=stream.codec_context.frame_size or None
            )
            for part in (*fit.resample(frame), *fit.resample(None)):
                for packet in stream.encode(part):
                    out.mux(packet)
            for packet in stream.encode(None):
                out.mux(packet)
        file.flush()
        return Path(file.name).read_bytes()

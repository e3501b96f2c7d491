"""Files and arrays to inputs of models: the same bits every time, and a reason if decoding fails."""

import io
import struct
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import ClassVar

import numpy as np
import pytest

import embstore
from embstore import errors
from embstore._engine.format.config import Config
from embstore._engine.read.dtypes import narrow_bfloat16
from embstore.encoders.audio import AudioSettings, decode_audio
from embstore.encoders.base import BaseEncoder
from embstore.encoders.image import decode_image
from embstore.encoders.image import describe as describe_image
from embstore.encoders.sound_files import scaled
from embstore.encoders.text import decode_text
from embstore.sources import Folder
from tests._helpers.images import grey_tiff, png
from tests._helpers.sounds import RATE, av_file, sound_file, tone

FORMATS = [
    ("WAV", "PCM_16", RATE),
    ("WAV", "PCM_24", RATE),
    ("WAV", "FLOAT", RATE),
    ("WAV", "PCM_U8", 8_000),
    ("AIFF", "PCM_16", RATE),
    ("FLAC", "PCM_16", RATE),
    ("OGG", "VORBIS", RATE),
    ("OGG", "OPUS", 48_000),
    ("MP3", "MPEG_LAYER_III", RATE),
]

sound = pytest.mark.skipif(
    not all(map(find_spec, ("av", "soxr", "soundfile"))), reason="needs embstore[audio], and soundfile to write files"
)
pillow = pytest.mark.skipif(not find_spec("PIL"), reason="needs embstore[image]")
torch_installed = pytest.mark.skipif(not find_spec("torch"), reason="needs embstore[torch]")


def patched_wav(samples, size):
    """Return a WAV file whose header states a file of so many bytes."""
    data = bytearray(sound_file(samples))
    struct.pack_into("<I", data, 4, size - 8)
    struct.pack_into("<I", data, data.index(b"data") + 4, size - data.index(b"data") - 8)
    return bytes(data)


def loudest(clip, rate):
    """Return the frequency, in Hz, that is strongest."""
    spectrum = np.abs(np.fft.rfft(clip * np.hanning(len(clip))))
    return spectrum.argmax() * rate / len(clip)


def native(rate=RATE, duration=None):
    return AudioSettings(sample_rate=rate, duration=duration)


# -- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0, -1, 0.5, float("nan"), float("inf"), True, "16000", None])
def test_a_rate_is_a_positive_whole_number(rate):
    with pytest.raises(errors.ConfigError) as caught:
        AudioSettings(sample_rate=rate)
    assert caught.value.attribute == "sample_rate"
    assert caught.value.value is rate


@pytest.mark.parametrize("duration", [0, -1.0, float("nan"), float("inf"), True, "5"])
def test_a_duration_is_positive(duration):
    with pytest.raises(errors.ConfigError) as caught:
        AudioSettings(sample_rate=16_000, duration=duration)
    assert caught.value.attribute == "duration"


def test_samples_of_a_clip():
    assert AudioSettings(sample_rate=16_000, duration=5).samples == 80_000
    assert AudioSettings(sample_rate=np.int64(16_000), duration=1e-9).samples == 1
    assert AudioSettings(sample_rate=16_000.0, duration=None).samples is None
    assert AudioSettings(sample_rate=22_050, duration=1 / 3).samples == 7_350


def test_settings_are_config():
    config = Config(AudioSettings(sample_rate=16_000, duration=5).describe())
    assert config == {
        "sample_rate": 16_000,
        "duration": 5,
        "decoder": "pyav",
        "channels": "mean",
        "resampling": "soxr HQ",
        "cut": "start",
        "pad": "zeros at the end",
    }
    assert Config(AudioSettings(sample_rate=np.int64(16_000), duration=np.float32(5)).describe()) == config
    assert Config(describe_image()) == {"mode": "RGB", "orientation": "exif", "alpha": "over white"}


# -- sound files ------------------------------------------------------------------------------


@sound
@pytest.mark.parametrize(("kind", "subtype", "rate"), FORMATS)
def test_a_format_at_another_rate_and_length(kind, subtype, rate):
    data = sound_file(tone(440, 3, rate), rate, kind, subtype)
    clip = decode_audio(data, native(16_000, 2))
    assert clip.shape == (32_000,)
    assert loudest(clip, 16_000) == 440
    assert abs(np.sqrt((clip**2).mean()) - 0.5 / np.sqrt(2)) < 0.01


@sound
def test_a_codec_without_loss_gives_the_same_in_each_container():
    samples = np.round(tone(440, 1, 48_000) * 2**15) / np.float32(2**15)
    settings = native(16_000, 0.75)
    inside = decode_audio(av_file(samples, "matroska", "flac"), settings)
    assert np.array_equal(inside, decode_audio(sound_file(samples, 48_000, "FLAC"), settings))


@sound
@pytest.mark.parametrize(("rate", "wanted"), [(44_100, 16_000), (8_000, 16_000), (48_000, 44_100), (192_000, 16_000)])
def test_a_sine_keeps_its_frequency_and_its_level(rate, wanted):
    clip = decode_audio((tone(1_000, 1, rate), rate), native(wanted))
    assert len(clip) == wanted
    assert loudest(clip, wanted) == 1_000
    inside = slice(wanted // 10, -wanted // 10)
    assert np.abs(clip - tone(1_000, 1, wanted))[inside].max() < 1e-3


@sound
def test_what_a_rate_can_not_hold_is_filtered():
    clip = decode_audio((tone(10_000), RATE), native(16_000))  # would be heard at 6 kHz
    assert np.abs(clip[1000:-1000]).max() < 1e-4


@sound
@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 96_000, 192_000])
@pytest.mark.parametrize("wanted", [16_000, 48_000])
def test_what_lies_after_the_cut_changes_nothing(rng, rate, wanted):
    noise = rng.standard_normal(5 * rate).astype(np.float32)
    whole = decode_audio((noise, rate), native(wanted))
    cut = native(wanted, 1.5)
    assert np.array_equal(decode_audio((noise, rate), cut), whole[: cut.samples])
    noise[4 * rate :] = np.nan  # nor is it looked at
    assert np.array_equal(decode_audio((noise, rate), cut), whole[: cut.samples])


@sound
def test_a_long_file_is_read_no_further_than_needed(rng, monkeypatch):
    read = []

    def counted(frames):
        read.append(len(frames))
        return scaled(frames)

    monkeypatch.setattr("embstore.encoders.sound_files.scaled", counted)
    data = sound_file(rng.uniform(-0.5, 0.5, (60 * 8_000, 1)), 8_000, "FLAC")
    decode_audio(data, native(16_000, 2))
    assert 2 * 8_000 < sum(read) < 4 * 8_000


class Clips(BaseEncoder):
    """Clips of half a second, of which the mean is the embedding."""

    config: ClassVar = {"encoder": "clips"}
    modality = "audio"
    opens_files = True

    def decode(self, content):
        return decode_audio(content, native(16_000, 0.5))

    def encode(self, items):
        return np.array([[item.mean()] for item in items], np.float32)


def traced(function):
    """Return what a function returns, and the most bytes of Python objects at a time."""
    tracemalloc.start()
    try:
        return function(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@sound
def test_long_files_are_not_read_into_memory(tmp_path, path):
    size = 2**25
    files = [tmp_path / f"sounds/{i}.wav" for i in range(4)]
    files[0].parent.mkdir()
    for i, file in enumerate(files):
        with file.open("wb") as out:  # sparse
            out.write(patched_wav(tone(440 + i), size))
            out.truncate(size)
    source = Folder(files[0].parent, name="long")
    result, most = traced(lambda: embstore.embed(source, Clips(), path, workers=4))
    assert (result.encoded, most < size // 2) == (4, True)
    for again in (
        lambda: embstore.embed(source, Clips(), path),
        lambda: embstore.check(result.store, Clips(), source, n=4),
        lambda: [sample.current_digest() for sample in source],
        lambda: decode_audio({"path": files[0], "bytes": None}, native(16_000, 0.5)),
    ):
        assert traced(again)[1] < size // 2


@sound
def test_a_file_that_changes_while_it_is_decoded_is_a_failure(tmp_path, path):
    file = tmp_path / "sounds" / "a.wav"
    file.parent.mkdir()
    file.write_bytes(sound_file(tone(440)))

    class Slow(Clips):
        def decode(self, content):
            item = super().decode(content)
            with file.open("ab") as out:
                out.write(b"more")
            return item

    result = embstore.embed(Folder(file.parent, name="changing"), Slow(), path)
    assert [failure.reason for failure in result.failed] == ["it changed while it was read"]


@sound
def test_a_shorter_clip_is_padded_at_its_end():
    clip = decode_audio((tone(440, 0.5), RATE), native(RATE, 2))
    assert np.array_equal(clip[: RATE // 2], tone(440, 0.5))
    assert not clip[RATE // 2 :].any()


@sound
def test_each_clip_is_its_own_memory():
    samples = tone(440)
    clip = decode_audio((samples, RATE), native())
    clip[:] = 0
    assert samples.any()


@sound
def test_bits_are_the_same_in_eight_threads():
    kinds = [(kind, subtype) for kind, subtype, rate in FORMATS if rate == RATE]
    files = [sound_file(tone(300 + 50 * i, 2), RATE, *kind) for i, kind in enumerate(kinds)]
    settings = native(16_000, 1.7)
    alone = [decode_audio(data, settings).tobytes() for data in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda data: decode_audio(data, settings).tobytes(), files * 8))
    assert together == alone * 8


# -- samples in memory ------------------------------------------------------------------------


@sound
def test_all_forms_of_one_clip_are_the_same_bits(tmp_path):
    whole = (np.stack([tone(440), tone(700)], axis=1) * 2**15).astype(np.int16)
    data = sound_file(whole)
    path = tmp_path / "clip.wav"
    path.write_bytes(data)
    floats = whole.astype(np.float64) / 2**15
    forms = [
        bytearray(data),
        memoryview(data),
        {"bytes": data, "path": None},
        {"bytes": data, "path": "not/there.wav"},
        {"bytes": None, "path": str(path)},
        {"path": path},
        (whole, RATE),
        (floats, np.int64(RATE)),
        (floats.astype(np.float32).tolist(), float(RATE)),
        (np.asfortranarray(floats), RATE),
        {"array": whole, "sampling_rate": RATE},
        {"array": floats, "sampling_rate": RATE, "path": "clip.wav"},
    ]
    expected = decode_audio(data, native(16_000, 0.8))
    for form in forms:
        assert np.array_equal(decode_audio(form, native(16_000, 0.8)), expected), type(form)


@sound
@torch_installed
def test_tensors():
    import torch

    samples = tone(440)
    for tensor in (torch.from_numpy(samples), torch.from_numpy(samples).requires_grad_()):
        assert np.array_equal(decode_audio((tensor, RATE), native()), samples)
    half = decode_audio((torch.from_numpy(samples).bfloat16(), RATE), native())
    assert np.array_equal(half.view(np.uint32) >> 16, narrow_bfloat16(samples))


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("int8", [-128, 0, 64]),
        ("uint8", [0, 128, 192]),
        ("int16", [-(2**15), 0, 2**14]),
        ("uint16", [0, 2**15, 3 * 2**14]),
        ("int32", [-(2**31), 0, 2**30]),
        (">i2", [-(2**15), 0, 2**14]),
        ("float16", [-1, 0, 0.5]),
        ("float64", [-1, 0, 0.5]),
    ],
)
def test_numbers_are_scaled_by_their_range(dtype, values):
    clip = decode_audio((np.array(values, dtype), RATE), native())
    assert clip.dtype == np.float32
    assert clip.tolist() == [-1, 0, 0.5]


def test_the_mean_over_channels_is_taken_in_their_order(rng):
    frames = rng.standard_normal((1000, 12)).astype(np.float32)
    total = frames[:, 0].copy()
    for channel in range(1, 12):
        total += frames[:, channel]
    assert np.array_equal(decode_audio((frames, RATE), native()), total / np.float32(12))


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (np.zeros(100, np.float32), TypeError, r"give samples as \(array, rate\)"),
        ([0.0, 0.1, 0.2], TypeError, r"\(array, rate\)"),
        ("clip.wav", TypeError, "found str"),
        (None, TypeError, "NoneType"),
        ((np.zeros(100), None), TypeError, "sample rate in Hz"),
        ((np.zeros(100), True), TypeError, "sample rate in Hz"),
        ((np.zeros(100), "16000"), TypeError, "sample rate in Hz"),
        ({"array": np.zeros(100)}, TypeError, "sample rate in Hz"),
        ({"audio": b""}, TypeError, r"\['audio'\]"),
        ((np.zeros(100, np.int64), RATE), TypeError, "int64; cast"),
        ((np.zeros(100, bool), RATE), TypeError, "bool"),
        ((np.zeros(100, complex), RATE), TypeError, "complex"),
        ((["a", "b"], RATE), TypeError, "found <U1"),
        ((np.zeros((2, 100)), RATE), errors.ShapeError, r"\(samples, channels\).*\(2, 100\)"),
        ((np.zeros((1, 100)), RATE), errors.ShapeError, r"\(1, 100\)"),
        ((np.zeros((9, 2, 2)), RATE), errors.ShapeError, r"\(9, 2, 2\)"),
        ((np.float32(0), RATE), errors.ShapeError, "samples"),
        ((np.zeros(100), 0), errors.DecodeError, "0 Hz"),
        ((np.zeros(100), -8000), errors.DecodeError, "-8000 Hz"),
        ((np.zeros(100), float("nan")), errors.DecodeError, "nan Hz"),
        ((np.zeros(0), RATE), errors.DecodeError, "zero-length clip"),
        ((np.zeros((0, 2)), RATE), errors.DecodeError, "zero-length clip"),
        (([], RATE), errors.DecodeError, "zero-length clip"),
        ((np.array([0, np.nan]), RATE), errors.DecodeError, "NaN or infinity"),
        ((np.array([0, -np.inf]), RATE), errors.DecodeError, "NaN or infinity"),
        ((np.array([[np.inf, -np.inf]] * 3), RATE), errors.DecodeError, "NaN or infinity"),
        ((np.array([0, 1e300]), RATE), errors.DecodeError, "NaN or infinity"),
        (b"", errors.DecodeError, "the file is empty"),
        ({"bytes": b"", "path": None}, errors.DecodeError, "the file is empty"),
    ],
)
def test_content_that_is_no_clip(content, error, words):
    with pytest.raises(error, match=words):
        decode_audio(content, native())


def test_a_path_that_is_not_there(tmp_path):
    path = tmp_path / "gone.wav"
    for decode in (lambda content: decode_audio(content, native()), decode_image):
        if decode is decode_image and not find_spec("PIL"):
            continue
        with pytest.raises(errors.SampleError, match="No such file") as caught:
            decode({"bytes": None, "path": str(path)})
        assert caught.value.path == path


@sound
def test_a_clip_so_short_that_nothing_is_left():
    with pytest.raises(errors.DecodeError, match=r"zero-length clip: nothing is left of 1 sample\(s\) at 192000 Hz"):
        decode_audio((np.ones(1, np.float32), 192_000), native(8_000, 1))


# -- broken sound files -----------------------------------------------------------------------


@sound
@pytest.mark.parametrize("kind", ["WAV", "AIFF", "CAF"])
def test_a_file_without_samples(kind):
    with pytest.raises(errors.DecodeError, match="zero-length clip"):
        decode_audio(sound_file(np.zeros((0, 2)), RATE, kind), native(16_000, 1))


@sound
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_file_with_nan(bad):
    samples = tone(440)
    samples[100] = bad
    with pytest.raises(errors.DecodeError, match="NaN or infinity"):
        decode_audio(sound_file(samples, subtype="FLOAT"), native())


@sound
@pytest.mark.parametrize("data", [b"hello", bytes(1000), b"\xff" * 100, b"RIFF\xff\xff\xff\xffWAVE", b"fLaC", b"OggS"])
def test_not_a_sound_file(data):
    with pytest.raises(errors.DecodeError, match=r"not decodable|cut short"):
        decode_audio(data, native())


@sound
def test_a_film_without_sound():
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        stream = out.add_stream("mpeg4", rate=10, width=32, height=32, pix_fmt="yuv420p")
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        for packet in (*stream.encode(frame), *stream.encode(None)):
            out.mux(packet)
    with pytest.raises(errors.DecodeError, match="no audio stream"):
        decode_audio(file.getvalue(), native())


def mp3_without_length(**options):
    """Return an MP3 file of noise of changing level, less its first frame, which states the number of frames."""
    level = np.abs(np.sin(np.arange(5 * RATE) / 30_000))
    samples = (np.random.default_rng(0).standard_normal(5 * RATE) * 0.1 * level).astype(np.float32)
    data = sound_file(samples, RATE, "MP3", "MPEG_LAYER_III", **options)
    bit_rates = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
    return data, data[144 * bit_rates[data[2] >> 4] * 1000 // RATE + (data[2] >> 1 & 1) :]


@sound
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_mp3_that_does_not_state_its_length_is_read_to_its_end(mode):
    whole, bare = mp3_without_length(bitrate_mode=mode, compression_level=0.5)
    assert len(decode_audio(whole, native())) == 5 * RATE
    assert abs(len(decode_audio(bare, native())) - 5 * RATE) < 3 * 1152


@sound
def test_flac_of_unknown_length():
    data = bytearray(sound_file(tone(440), RATE, "FLAC"))
    expected = decode_audio(bytes(data), native())
    data[21] &= 0xF0  # the number of samples, as it is left when a file is written to a pipe
    data[22:26] = bytes(4)
    assert np.array_equal(decode_audio(bytes(data), native()), expected)


@sound
def test_a_header_that_claims_terabytes():
    data = bytearray(sound_file(tone(440), RATE, "FLAC"))
    data[21] |= 0x0F
    data[22:26] = b"\xff" * 4
    with pytest.raises(errors.DecodeError):
        decode_audio(bytes(data), native())


@pytest.mark.parametrize("library", ["av", "soxr"])
def test_a_missing_library_says_what_to_install(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    content = b"RIFF" if library == "av" else (tone(440), RATE)
    with pytest.raises(ImportError, match=r"pip install 'embstore\[audio\]'"):
        decode_audio(content, native(16_000))


# -- images -----------------------------------------------------------------------------------


@pytest.fixture
def pixels(rng):
    return rng.integers(0, 256, (7, 5, 3), dtype=np.uint8)


def image_file(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(content):
    image = decode_image(content)
    assert image.mode == "RGB"
    return np.asarray(image)


@pillow
@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF", "JPEG"])
def test_each_image_format(pixels, kind):
    from PIL import Image

    options = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    found = decoded(image_file(Image.fromarray(pixels), kind, **options))
    assert found.shape == pixels.shape
    assert np.abs(found.astype(int) - pixels).max() <= (8 if kind == "JPEG" else 255 if kind == "GIF" else 0)


@pillow
@pytest.mark.parametrize("kind", ["TIFF", "WEBP"])
def test_a_format_that_pillow_has_not_loaded_yet(pixels, kind):
    from PIL import Image

    program = (
        "import sys; from embstore.encoders.image import decode_image as d; print(d(sys.stdin.buffer.read()).size)"
    )
    data = image_file(Image.fromarray(pixels), kind)
    assert subprocess.run([sys.executable, "-c", program], input=data, capture_output=True).stdout == b"(5, 7)\n"


@pillow
def test_all_forms_of_one_image_are_the_same(pixels, tmp_path):
    from PIL import Image

    image = Image.fromarray(pixels)
    data = image_file(image, "PNG")
    path = tmp_path / "image.png"
    path.write_bytes(data)
    for form in (
        data,
        bytearray(data),
        memoryview(data),
        {"bytes": data},
        {"path": path},
        image,
        pixels,
        pixels[:, ::-1][:, ::-1],
    ):
        assert np.array_equal(decoded(form), pixels), type(form)


@pillow
def test_an_image_that_was_given_is_left_as_it_is(pixels):
    from PIL import Image

    image = Image.fromarray(pixels)
    found = decode_image(image)
    found.putpixel((0, 0), (1, 2, 3))
    assert np.array_equal(np.asarray(image), pixels)


@pillow
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(("orientation", "turned"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_images_are_turned_upright(kind, orientation, turned):
    from PIL import Image

    stripes = np.zeros((16, 24, 3), np.uint8)
    stripes[:, :8] = 255
    image = Image.fromarray(stripes)
    exif = image.getexif()
    exif[0x0112] = orientation
    found = decoded(image_file(image, kind, exif=exif))
    assert np.abs(found.astype(int) - np.rot90(stripes, turned)).max() < 64


@pillow
def test_transparency_is_composited_over_white():
    from PIL import Image

    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (200, 100, 0, 255)
    rgba[0, 1] = (200, 100, 0, 0)
    rgba[1, 0] = (0, 0, 0, 51)
    expected = [[[200, 100, 0], [255, 255, 255]], [[204, 204, 204], [255, 255, 255]]]
    assert decoded(rgba).tolist() == expected
    assert decoded(image_file(Image.fromarray(rgba), "PNG")).tolist() == expected
    grey = np.array([[[10, 255], [10, 0]]], np.uint8)
    assert decoded(image_file(Image.fromarray(grey), "PNG")).tolist() == [[[10] * 3, [255] * 3]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 9, 9, 9])
    palette.putpixel((1, 0), 1)
    for transparency in (0, b"\0\xff"):
        found = decoded(image_file(palette, "PNG", transparency=transparency))
        assert found.tolist() == [[[255] * 3, [9] * 3]]


@pillow
def test_grey_of_any_depth():
    from PIL import Image

    eight = np.array([[0, 1, 128, 255]], np.uint8)
    expected = np.repeat(eight[..., None], 3, axis=2)
    assert np.array_equal(decoded(eight), expected)
    sixteen = eight.astype(np.uint16) * 257
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(decoded(image_file(Image.fromarray(sixteen), kind)), expected)
    assert np.array_equal(decoded(Image.fromarray(sixteen.astype(">u2"))), expected)
    assert decoded(Image.fromarray(np.array([[True, False]]))).tolist() == [[[255] * 3, [0] * 3]]


@pillow
def test_cmyk_and_palettes():
    from PIL import Image

    cmyk = Image.new("CMYK", (1, 1), (255, 0, 0, 0))
    assert decoded(image_file(cmyk, "TIFF")).tolist() == [[[0, 255, 255]]]
    palette = Image.new("P", (1, 1), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert decoded(image_file(palette, "PNG")).tolist() == [[[10, 20, 30]]]


@pillow
def test_the_first_frame_of_an_animation(pixels):
    from PIL import Image

    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = image_file(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decoded(data)[0, 0].tolist() == [255, 0, 0]


@pillow
def test_images_are_the_same_in_eight_threads(rng):
    from PIL import Image

    image = Image.fromarray(rng.integers(0, 256, (64, 64, 4), dtype=np.uint8))
    files = [image_file(image, "PNG"), image_file(image.convert("RGB"), "JPEG"), image_file(image.convert("P"), "PNG")]
    alone = [decoded(data).tobytes() for data in files]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda data: decoded(data).tobytes(), files * 16)) == alone * 16


@pillow
@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"", errors.DecodeError, "the file is empty"),
        (b"hello", errors.DecodeError, "not an image"),
        (bytes(1000), errors.DecodeError, "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", errors.DecodeError, "not an image"),
        (np.zeros((0, 4, 3), np.uint8), errors.DecodeError, "without pixels"),
        (np.zeros((4, 4, 3), np.float32), TypeError, "uint8, found float32"),
        (np.zeros((3, 4, 5), np.uint8), errors.ShapeError, "height"),
        (np.zeros((4, 4, 2), np.uint8), errors.ShapeError, "height"),
        (np.zeros(4, np.uint8), errors.ShapeError, "height"),
        ("image.png", TypeError, "found str"),
        ({"image": 1}, TypeError, "bytes"),
    ],
)
def test_content_that_is_no_image(content, error, words):
    with pytest.raises(error, match=words):
        decode_image(content)


def packed(form, *numbers):
    return struct.pack(form.replace("*", str(len(numbers))), *numbers)


# One line a file: its bytes, and the grey or the colours that are seen.
NUMBERS = {
    "PNG-1": (lambda: png([b"\x60"], 1), [0, 255, 255, 0, 0, 0, 0, 0]),
    "PNG-2": (lambda: png([b"\x1b"], 2), [0, 85, 170, 255]),
    "PNG-16": (lambda: png([packed(">*H", 0, 1000, 65535)], 16), [0, 4, 255]),
    "PNG-1-transparent": (lambda: png([b"\x60"], 1, transparent=b"\0\0"), [255] * 8),
    "PNG-2-transparent": (lambda: png([b"\x1b"], 2, transparent=b"\0\1"), [0, 255, 170, 255]),
    "PNG-4-transparent": (lambda: png([b"\x01\x2f"], 4, transparent=b"\0\2"), [0, 17, 255, 255]),
    "PNG-8-transparent": (lambda: png([b"\x01\x02"], 8, transparent=b"\0\1"), [255, 2]),
    "PNG-16-transparent": (
        lambda: png([packed(">*H", 0, 1000, 1001)], 16, transparent=packed(">H", 1000)),
        [0, 255, 4],
    ),
    "PNG-16-alpha": (lambda: png([packed(">*H", 0, 0xFFFF, 0, 0)], 16, 4), [0, 255]),
    "PNG-palette-alpha": (
        lambda: png([b"\0\1\2"], 8, 3, palette=bytes([9, 9, 9, 0, 0, 0, 7, 7, 7]), transparent=b"\0\xcc"),
        [255, 51, 7],
    ),
    "TIFF-2": (lambda: grey_tiff(b"\x1b", 4, 2), [0, 85, 170, 255]),
    "TIFF-12": (lambda: grey_tiff(b"\x00\x0f\xff\x7f\xf0\x00", 4, 12), [0, 255, 127, 0]),
    "TIFF-16": (lambda: grey_tiff(packed("<*H", 0, 1000, 65535), 3, 16), [0, 4, 255]),
    "TIFF-16-big-endian": (lambda: grey_tiff(packed(">*H", 0, 1000, 65535), 3, 16, order=">"), [0, 4, 255]),
    "TIFF-1-white-is-zero": (lambda: grey_tiff(b"\x40", 2, 1, white_is_zero=True), [255, 0]),
    "TIFF-8-white-is-zero": (lambda: grey_tiff(b"\x00\x01", 2, 8, white_is_zero=True), [255, 254]),
    "TIFF-16-white-is-zero": (
        lambda: grey_tiff(packed("<*H", 0, 1000, 65535), 3, 16, white_is_zero=True),
        [255, 251, 0],
    ),
    "PBM": (lambda: b"P4 8 1 \x60", [255, 0, 0, 255, 255, 255, 255, 255]),
    "XBM": (
        lambda: b"#define a_width 8\n#define a_height 1\nstatic char a_bits[] = {\n0x06 };\n",
        [255, 0, 0, 255, 255, 255, 255, 255],
    ),
    "PGM-10": (lambda: b"P5 3 1 1000 " + packed(">*H", 0, 500, 1000), [0, 128, 255]),
}


@pillow
@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_are_read_in_the_range_and_the_sense_that_the_file_states(case):
    make, expected = NUMBERS[case]
    found = decoded(make())
    assert found[0].tolist() == [[grey] * 3 for grey in expected]


def fits(bits):
    cards = ["SIMPLE  = T", f"BITPIX  = {bits}", "NAXIS   = 2", "NAXIS1  = 2", "NAXIS2  = 1", "END"]
    return "".join(f"{card:<80}" for card in cards).ljust(2880).encode() + bytes(2880)


UNKNOWN_RANGE = {
    "int32": lambda image: image.fromarray(np.array([[0, 1_000_000]], np.int32)),
    "float32": lambda image: image.fromarray(np.zeros((2, 2), np.float32)),
    "TIFF-int8": lambda image: grey_tiff(b"\x80\x7f", 2, 8, signed=True),
    "TIFF-int16": lambda image: grey_tiff(packed("<*h", -1000, 1000), 2, 16, signed=True),
    "TIFF-int16-big-endian": lambda image: grey_tiff(packed(">*h", -1000, 1000), 2, 16, order=">", signed=True),
    "TIFF-uint32": lambda image: grey_tiff(packed("<*I", 0, 2**32 - 1), 2, 32),
    "TIFF-int32": lambda image: image_file(image.fromarray(np.array([[0, 1_000_000]], np.int32)), "TIFF"),
    "TIFF-float32": lambda image: image_file(image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"),
    "FITS-int16": lambda image: fits(16),
    "FITS-int32": lambda image: fits(32),
    "FITS-float32": lambda image: fits(-32),
}


@pillow
@pytest.mark.parametrize("case", UNKNOWN_RANGE)
def test_numbers_of_an_unknown_range_are_refused(case):
    from PIL import Image

    with pytest.raises(errors.DecodeError, match="whose range is not known; convert it to 8 bits"):
        decode_image(UNKNOWN_RANGE[case](Image))


@pillow
def test_a_transparent_colour_of_16_bits_is_refused():
    # Pillow keeps the upper 8 bits of each colour, and 16 bits of the transparent one.
    colours = packed(">*H", 0x100, 0x200, 0x300, 0x101, 0x200, 0x300)
    with pytest.raises(errors.DecodeError, match="16-bit colours with a transparent one"):
        decode_image(png([colours], 16, 2, transparent=colours[:6]))
    assert decoded(png([colours], 16, 2))[0].tolist() == [[1, 2, 3], [1, 2, 3]]


@pillow
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_images_that_are_cut_short(rng, kind):
    from PIL import Image

    data = image_file(Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
    for part in (0.3, 0.6, 0.9):
        with pytest.raises(errors.DecodeError):
            decode_image(data[: int(part * len(data))])


@pillow
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "PPM"])
def test_images_cut_short_are_refused_in_a_process_that_allows_them(rng, kind, monkeypatch):
    from PIL import Image, ImageFile

    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = image_file(Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
    cut = data[: len(data) // 2]
    for content in (cut, Image.open(io.BytesIO(cut))):
        with pytest.raises(errors.DecodeError):
            decode_image(content)
    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(decode_image, part) for part in [cut, data] * 4]
    assert [isinstance(result.exception(), errors.DecodeError) for result in results] == [True, False] * 4
    Image.open(io.BytesIO(cut)).load()  # the others in the process read them as before
    assert np.array_equal(decoded(data), decoded(data))


@pillow
def test_an_image_that_would_fill_the_memory(pixels, monkeypatch):
    from PIL import Image

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels.size // 3 // 2 - 1)
    with pytest.raises(errors.DecodeError, match="exceeds limit"):
        decode_image(image_file(Image.fromarray(pixels), "PNG"))


@pillow
@pytest.mark.filterwarnings("ignore")  # Pillow warns of damage that it can repair
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_flipped_bits_are_an_image_or_a_reason(rng, kind):
    from PIL import Image

    data = image_file(Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)), kind)
    reasons = []
    for _ in range(60):
        broken = bytearray(data)
        for place in rng.integers(0, min(len(data), 400), 4):
            broken[place] ^= 1 << int(rng.integers(8))
        try:
            assert decode_image(bytes(broken)).mode == "RGB"
        except errors.DecodeError as error:
            reasons.append(error.reason)
    assert all(reasons)


def test_a_missing_pillow_says_what_to_install(monkeypatch):
    if find_spec("PIL"):
        monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"pip install 'embstore\[image\]'"):
        decode_image(b"")


# -- files of another kind --------------------------------------------------------------------

WAV_START = b"RIFF\xe4\xff\x07\x00WAVEfmt "
KINDS = [
    ("image", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC image; .* install pillow-heif and call"),
    ("image", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "a HEIC image"),
    ("image", b"\xff\x0a\xfa\x7f\x00", "a JPEG XL image; .* install pillow-jxl-plugin"),
    ("image", b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
    ("image", b"<?xml version='1.0'?>\n<!-- a -->\n<svg xmlns=''>", "an SVG drawing; convert it to PNG"),
    ("image", b"II*\0\x10\0\0\0CR\2\0", "a camera's raw image"),
    ("image", b"\xff\xd8\xff", "a JPEG image"),
    ("image", b"%PDF-1.7\n\xe2\xe3", "a PDF file"),
    ("image", b"%!PS-Adobe-3.0\n", "a PostScript program"),
    ("image", WAV_START, "WAV sound"),
    ("image", b"hello world\n", "text"),
    ("image", b"<!DOCTYPE html><html>", "a web page"),
    ("audio", b"hello world\n", "text"),
    ("audio", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
    ("audio", b"<html>404 Not Found</html>" * 9, "a web page"),
    ("audio", b"ID3\x03\0\0\0\0\0\x0a" + bytes(20), "MP3 sound"),
    ("audio", b"PK\x03\x04" + bytes(50), "a ZIP archive"),
    ("text", WAV_START + b"\xff\xfe", "WAV sound"),
    ("text", b"\xff\xfb\x90\x64", "MP3 sound"),
    ("text", b"\x89PNG\r\n\x1a\n", "a PNG image"),
    ("text", b"fLaC\0\0\0\x22\xff", "FLAC sound"),
]


@sound
@pillow
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(("modality", "data", "kind"), KINDS)
def test_a_file_of_another_kind_is_named(modality, data, kind):
    decode = {"audio": lambda data: decode_audio(data, native()), "image": decode_image, "text": decode_text}[modality]
    with pytest.raises(errors.DecodeError, match=f"; it begins like .*{kind}") as caught:
        decode(data)
    # Files of one kind have one reason, so that a report can fold them.
    with pytest.raises(errors.DecodeError) as other:
        decode(data + b"\nmore")
    assert other.value.reason == caught.value.reason


@sound
@pillow
def test_an_image_has_no_sound():
    from PIL import Image

    data = image_file(Image.new("RGB", (8, 8)), "GIF")
    with pytest.raises(errors.DecodeError, match="no audio stream; it begins like a GIF image"):
        decode_audio(data, native())


# -- text -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("a dog barks", "a dog barks"),
        (b"a dog barks\n", "a dog barks\n"),
        ("Hündin\u00a0bellt".encode(), "Hündin\u00a0bellt"),
        (b"\xef\xbb\xbfa dog", "a dog"),
        (bytearray(b"a dog"), "a dog"),
        ("\U0001f436", "\U0001f436"),
    ],
)
def test_texts(content, text):
    assert decode_text(content) == text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "empty text"),
        (b"", "empty text"),
        (" \n\t\u00a0", "empty text"),
        (b"\xef\xbb\xbf\n", "empty text"),
        (bytes(100), "null characters"),
        ("a dog barks".encode("utf-16-le"), "null characters"),
        ("a dog barks".encode("utf-16"), "not UTF-8; it begins like text in UTF-16"),
        (b"abc\xff", "not UTF-8: invalid start byte at byte 3"),
        ("Hündin".encode("latin-1"), "not UTF-8"),
        ("abc\ud800", "not valid Unicode: surrogates not allowed at character 3"),
    ],
)
def test_content_that_is_no_text(content, reason):
    with pytest.raises(errors.DecodeError, match=reason) as caught:
        decode_text(content)
    assert caught.value.path is None


def test_text_of_another_kind():
    with pytest.raises(TypeError, match="found int"):
        decode_text(3)

"""Sound files of every format: whole, cut short, joined, damaged, and of a length that they leave open."""

import base64
import io
import struct
import zlib
from contextlib import suppress
from importlib.util import find_spec

import numpy as np
import pytest

from embstore.encoders.content import FilePart
from embstore.encoders.sound_files import read_file
from embstore.encoders.sound_headers import extent
from embstore.errors import DecodeError
from tests._helpers.sounds import RATE, av_file, sound_file, tone

pytestmark = pytest.mark.skipif(
    not all(map(find_spec, ("av", "soundfile"))), reason="needs embstore[audio], and soundfile to write files"
)

SECONDS = 2

# Two seconds of sound each. Cut short, each is refused. One line a format: which library writes it, and how.
STATED = [
    ("soundfile", "WAV", "PCM_16"),
    ("soundfile", "WAV", "PCM_U8"),
    ("soundfile", "WAV", "ULAW"),
    ("soundfile", "WAV", "MS_ADPCM"),
    ("soundfile", "WAVEX", "FLOAT"),
    ("soundfile", "RF64", "PCM_16"),
    ("soundfile", "W64", "PCM_24"),
    ("soundfile", "CAF", "PCM_16"),
    ("soundfile", "CAF", "ALAC_16"),
    ("soundfile", "AIFF", "PCM_16"),
    ("soundfile", "AIFF", "IMA_ADPCM"),
    ("soundfile", "AU", "PCM_16"),
    ("soundfile", "SVX", "PCM_16"),
    ("soundfile", "VOC", "PCM_16"),
    ("soundfile", "NIST", "PCM_16"),
    ("soundfile", "FLAC", "PCM_16"),
    ("soundfile", "MP3", "MPEG_LAYER_III"),
    ("soundfile", "OGG", "VORBIS"),
    ("soundfile", "OGG", "OPUS", 48_000),
    ("av", "ogg", "flac"),
    ("av", "opus", "libopus"),
    ("av", "webm", "libopus"),
    ("av", "matroska", "pcm_s16le"),
    ("av", "matroska", "aac"),
    ("av", "ipod", "aac"),
    ("av", "ipod", "alac"),
    ("av", "mp4", "aac", 48_000, {"movflags": "+faststart"}),
    ("av", "mp4", "aac", 48_000, {"movflags": "+frag_keyframe+empty_moov", "frag_duration": "250000"}),
    ("av", "mov", "pcm_s16le", 48_000, {"movflags": "+faststart"}),
    ("av", "asf", "wmav2"),
    ("av", "wav", "wmav2"),
    ("av", "wav", "libmp3lame"),
    ("av", "wav", "pcm_s64le"),
    ("av", "wav", "adpcm_yamaha"),
    ("av", "wav", "g722", 16_000),
    ("av", "wav", "g726", 8_000),
    ("av", "avi", "pcm_s16le"),
    ("av", "flv", "aac", 44_100),
    ("av", "flv", "nellymoser", 44_100),
    ("av", "flv", "libmp3lame", 44_100),
    ("av", "wv", "wavpack"),
    ("av", "tta", "tta"),
    ("av", "sox", "pcm_s32le"),
    ("av", "mmf", "adpcm_yamaha", 44_100),
    ("av", "3gp", "aac"),
    ("av", "mp4", "flac"),
    ("av", "mp4", "libopus"),
    ("av", "matroska", "alac"),
    ("av", "mov", "adpcm_ima_qt"),
    ("av", "asf", "libmp3lame"),
    ("av", "rm", "ac3"),
    ("soundfile", "W64", "IMA_ADPCM"),
    ("soundfile", "WAV", "GSM610"),
    ("soundfile", "AU", "ULAW"),
    ("soundfile", "CAF", "FLOAT"),
]
# These state no length. A cut shows only if it falls into a packet.
UNSTATED = [
    ("av", "ac3", "ac3"),
    ("av", "eac3", "eac3"),
    ("av", "adts", "aac"),
    ("av", "mp2", "mp2"),
    ("av", "mpegts", "aac"),
    ("soundfile", "IRCAM", "PCM_16"),
]
# These state no length, but a size in each frame.
FRAMED = [
    ("av", "mp3", "libmp3lame", 44_100, {"write_xing": "0"}),
    ("av", "mp3", "libmp3lame", 22_050, {"write_xing": "0", "id3v2_version": "0"}),
    ("av", "mp2", "mp2"),
    ("av", "mp2", "mp2", 22_050),
    ("av", "ac3", "ac3"),
    ("av", "ac3", "ac3", 44_100),
    ("av", "ac3", "ac3", 32_000),
    ("av", "eac3", "eac3"),
    ("av", "mpeg", "mp2"),
]
EXACT = [
    ("WAV", ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW")),
    ("AIFF", ("PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")),
    ("FLAC", ("PCM_S8", "PCM_16", "PCM_24")),
    ("CAF", ("PCM_16", "ALAC_16")),
    ("RF64", ("PCM_16",)),
    ("W64", ("PCM_16",)),
    ("AU", ("PCM_16",)),
]


def noise(seconds, rate):
    return (tone(440, seconds, rate) + 0.01 * np.random.default_rng(0).standard_normal(round(seconds * rate))).astype(
        np.float32
    )


def made(library, kind, codec, rate=None, options=None, seconds=SECONDS):
    if library == "soundfile":
        return sound_file(noise(seconds, rate or RATE), rate or RATE, kind, codec)
    return av_file(noise(seconds, rate or 48_000), kind, codec, rate or 48_000, **options or {})


def whole(data):
    samples, rate = read_file(io.BytesIO(data), lambda rate: None)
    assert samples.dtype == np.float32
    return samples, rate


def label(case):
    return "-".join(map(str, case[1:3])) + "".join(f"-{value}" for value in (case[4] if len(case) > 4 else {}).values())


# -- whole ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", STATED + UNSTATED + FRAMED, ids=label)
def test_a_whole_file_is_read(case):
    samples, rate = whole(made(*case))
    assert SECONDS - 0.05 < len(samples) / rate < SECONDS + 0.07
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    assert abs(spectrum.argmax() * rate / len(samples) - 440) < 2
    assert abs(np.sqrt((samples**2).mean()) - 0.5 / np.sqrt(2)) < 0.03


@pytest.mark.parametrize(("kind", "codec"), [(kind, codec) for kind, codecs in EXACT for codec in codecs])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_without_loss_the_samples_are_those_of_libsndfile(rng, kind, codec, channels):
    import soundfile

    data = sound_file(rng.uniform(-1, 1, (5_000, channels)), RATE, kind, codec)
    expected, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    total = expected[:, 0].copy()
    for channel in range(1, channels):
        total += expected[:, channel]
    found = whole(data)
    assert found[1] == rate
    assert np.array_equal(found[0], total / np.float32(channels))


def test_samples_of_64_bits():
    samples = np.array([[0.5, -0.25], [1 - 2**-24, -1.0]])
    data = bytearray(av_file(np.zeros((2, 2), np.float32), "wav", "pcm_s64le", layout="stereo"))
    data[-32:] = (samples * 2.0**63).astype("<i8").tobytes()
    assert np.array_equal(whole(bytes(data))[0], samples.mean(axis=1, dtype=np.float32))


def test_speex():
    # speexenc --quality 0, of a tenth of a second at 8 kHz, packed and in Base64.
    data = zlib.decompress(
        base64.b64decode(
            "eNrzT08PZmBigAJPPX9PEB315vFLxoDggtTUCgUFBUM9Iz1DBlTACMQBQOwgD+GzQMX+A8ECJDXIwB9kFwOyXSAVnv+rNjEqSABZ"
            "rnnJ+SmpKQrlmSUZChDL4VaD9bIoMCP0ghzdL3Galw0COEI62N7xA0n2LCDZWYxGunSu28YPAJqMKtM="
        )
    )
    samples, rate = whole(data)
    assert (len(samples), rate) == (960, 8_000)
    assert np.abs(samples).max() > 0.1
    with pytest.raises(DecodeError, match="cut short"):
        whole(data[:-10])


def with_ogg_checksum(data):
    """Return an Ogg file whose first page, which was changed, has its checksum again."""
    end = 27 + data[26] + sum(data[27 : 27 + data[26]])
    page = bytearray(data[:end])
    page[22:26] = bytes(4)
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1) ^ (0x104C11DB7 if crc & 0x80000000 else 0)
    page[22:26] = struct.pack("<I", crc)
    return bytes(page) + data[end:]


@pytest.mark.parametrize("skipped", [0, 312, 3_840, 20_000, 65_535])
def test_opus_without_the_samples_that_its_header_excludes(skipped):
    # mutagen's example.opus excludes 65,535 samples, and was taken for a file cut short.
    data = sound_file(noise(SECONDS, 48_000), 48_000, "OGG", "OPUS")
    usual = struct.unpack_from("<H", data, data.index(b"OpusHead") + 10)[0]
    found, _ = whole(with_ogg_checksum(patched(data, b"OpusHead", 10, "<H", skipped)))
    assert abs(len(found) - (SECONDS * 48_000 + usual - skipped)) < 1_000


@pytest.mark.parametrize("channels", [8, 12])
@pytest.mark.parametrize(("kind", "codec"), [("OGG", "VORBIS"), ("WAV", "PCM_16")])
def test_many_channels(kind, codec, channels):
    # PyAV 18.1 reads behind the list of the planes, and the process dies.
    samples = np.stack([tone(440) * i / channels for i in range(channels)], axis=1)
    found, _ = whole(sound_file(samples, RATE, kind, codec))
    assert np.abs(found - samples.mean(axis=1))[500:-500].max() < 0.02


@pytest.mark.parametrize("seconds", [0.01, 0.05, 0.2, 0.3, 1, 3.3])
def test_vorbis_is_as_long_as_it_states(seconds):
    # FFmpeg alone gives 2,304 samples for 2,205, and 9,725 for 9,853 of a real file.
    import soundfile

    data = sound_file(noise(seconds, RATE), RATE, "OGG", "VORBIS")
    samples, _ = whole(data)
    assert len(samples) == round(seconds * RATE)
    assert np.abs(samples - soundfile.read(io.BytesIO(data))[0]).max() < 1e-6


# libsndfile writes these, and FFmpeg takes them for other encodings.
NOISE = [
    *((kind, codec, "FILE", f"G.721 and G.723 in {kind}") for kind, codec in (("AU", "G721_32"), ("AU", "G723_24"))),
    *((kind, codec, "FILE", f"G.721 and G.723 in {kind}") for kind, codec in (("AU", "G723_40"), ("WAV", "G721_32"))),
    *(("WAV", f"NMS_ADPCM_{bits}", "FILE", "NMS ADPCM") for bits in (16, 24, 32)),
    *(("WAV", codec, "BIG", r"\(RIFX\)") for codec in ("PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")),
    ("RAW", "PCM_16", "BIG", "samples without a header"),  # the data of SD2
]


@pytest.mark.parametrize(("kind", "codec", "endian", "name"), NOISE, ids=lambda value: value)
def test_an_encoding_that_comes_out_as_noise_is_refused(kind, codec, endian, name):
    samples = tone(440, 1, 8_000)
    samples = np.stack([samples, samples], axis=1) if kind == "RAW" else samples
    data = sound_file(samples, 8_000, kind, codec, endian=endian)
    for wanted in (None, 800):
        with pytest.raises(DecodeError, match=f"does not decode .*{name}.* correctly; convert it"):
            read_file(io.BytesIO(data), lambda rate, wanted=wanted: wanted)


def test_big_endian_wav_of_one_byte_is_read():
    import soundfile

    data = sound_file(noise(0.1, RATE), RATE, "WAV", "PCM_U8", endian="BIG")
    assert data.startswith(b"RIFX")
    assert np.array_equal(whole(data)[0], soundfile.read(io.BytesIO(data), dtype="float32")[0])


def test_a_list_of_files_opens_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.wav").write_bytes(sound_file(tone(440)))
    for text in ("ffconcat version 1.0\nfile 'secret.wav'\n", f"#EXTM3U\n#EXTINF:9,\n{tmp_path}/secret.wav\n"):
        with pytest.raises(DecodeError):
            whole(text.encode())


# -- cut short --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", STATED, ids=label)
def test_a_file_cut_short_is_refused(case):
    data = made(*case)
    for tenths in range(1, 10):
        with pytest.raises(DecodeError, match="cut short") as caught:
            whole(data[: tenths * len(data) // 10])
        assert any(character.isdigit() for character in caught.value.reason)


@pytest.mark.parametrize("case", FRAMED, ids=label)
def test_a_cut_within_a_frame_is_found(case):
    data = made(*case)
    for tenths in range(2, 10):
        end = tenths * len(data) // 10
        reasons = []
        for cut in (end, end - 13):  # not both are the end of a frame, or stand in a head of MPEG-TS
            with suppress(DecodeError):
                whole(data[:cut])
                continue
            reasons.append(cut)
        assert reasons, tenths


# The index of these comes last, or PyAV reads all of their one cluster first: nothing can be had without the end.
WHOLE = {
    *(("ipod", "aac"), ("ipod", "alac"), ("CAF", "ALAC_16"), ("matroska", "pcm_s16le"), ("3gp", "aac")),
    *(("mp4", "flac"), ("mp4", "libopus"), ("mov", "adpcm_ima_qt")),
}


@pytest.mark.parametrize("case", [case for case in STATED if case[1:3] not in WHOLE], ids=label)
def test_sound_before_the_cut_is_read(case):
    data = made(*case)
    rate = whole(data)[1]
    wanted = int(0.1 * rate)
    expected, _ = read_file(io.BytesIO(data), lambda rate: wanted)
    found, _ = read_file(io.BytesIO(data[: int(0.6 * len(data))]), lambda rate: wanted)
    assert len(found) == wanted
    assert np.array_equal(found, expected)


class Counted(io.BytesIO):
    """A file that counts the bytes that are read."""

    total = 0

    def read(self, size=-1):
        data = super().read(size)
        self.total += len(data)
        return data


LONG = [
    ("soundfile", "WAV", "PCM_16"),
    ("soundfile", "AIFF", "PCM_24"),
    ("soundfile", "FLAC", "PCM_16"),
    ("soundfile", "MP3", "MPEG_LAYER_III"),
    ("soundfile", "OGG", "VORBIS"),
    ("soundfile", "OGG", "OPUS", 48_000),
    ("av", "webm", "libopus"),
    ("av", "ipod", "alac"),
    ("av", "mp4", "aac"),
]


@pytest.mark.parametrize("case", LONG, ids=label)
def test_of_a_long_file_little_is_read(case):
    short, long = made(*case, seconds=4), made(*case, seconds=40)
    wanted = int(0.1 * whole(short)[1])
    file, shorter = Counted(long), Counted(short)
    assert len(read_file(file, lambda rate: wanted)[0]) == wanted
    read_file(shorter, lambda rate: wanted)
    # The heads of Ogg's pages are read to the end, since another stream may begin there. MP4's index grows.
    more = 282 * long.count(b"OggS") if case[1] == "OGG" else 0.05 * len(long)
    assert file.total < shorter.total + more + 100_000
    assert file.total < 5_000_000


@pytest.mark.parametrize(
    "case", [case for case in STATED if case[1] in ("WAV", "RF64", "W64", "AIFF", "AU", "FLAC")], ids=label
)
def test_a_hundred_bytes_less_are_found(case):
    data = made(*case)
    data = data[: len(data) - 100]
    if case[1] == "WAVEX":
        data = data[:-200]
    with pytest.raises(DecodeError, match="cut short"):
        whole(data)


@pytest.mark.parametrize("kind", ["WAV", "W64"])
def test_a_cut_is_found_behind_a_chunk_of_odd_size(kind):
    data = made("soundfile", kind, "PCM_16")
    sound = data.index(b"data" if kind == "WAV" else b"data\xf3\xac")
    chunk = b"note" + struct.pack("<I", 3) + b"abc\0"
    if kind == "W64":  # the size counts the head of 24 bytes, and chunks begin at multiples of 8
        chunk = b"note" + bytes(12) + struct.pack("<Q", 27) + b"abc" + bytes(5)
    longer = data[:sound] + chunk + data[sound:]
    assert np.array_equal(whole(longer)[0], whole(data)[0])
    with pytest.raises(DecodeError, match="bytes of sound"):
        whole(longer[: len(longer) // 2])


@pytest.mark.parametrize("codec", ["VORBIS", "OPUS"])
def test_a_cut_between_two_pages_of_ogg_is_found(codec):
    data = sound_file(noise(SECONDS, 48_000), 48_000, "OGG", codec)
    pages = [place for place in range(len(data)) if data.startswith(b"OggS", place)]
    assert len(pages) > 3
    with pytest.raises(DecodeError, match="it has no end-of-stream page"):
        whole(data[: pages[-1]])


def test_the_reason_names_both_lengths():
    data = sound_file(tone(440, 6))
    with pytest.raises(DecodeError) as caught:
        whole(data[: len(data) // 4])
    assert caught.value.reason == (
        "it is cut short: it states 529,200 bytes of sound (about 6.000 s) and has 132,267 (1.500 s)"
    )
    data = sound_file(tone(440, 6), kind="AU")
    with pytest.raises(DecodeError, match=r"it states 264,600 samples \(6.000 s\) and has 66,\d\d\d \(1.500 s\)"):
        whole(data[: len(data) // 4])
    data = sound_file(tone(440, 6), kind="OGG")
    with pytest.raises(DecodeError, match=r"it has no end-of-stream page, and ends after \d\.\d\d\d s"):
        whole(data[: len(data) // 2])


def patched(data, mark, offset, form, *values):
    """Overwrite a number that stands some bytes behind a mark."""
    data = bytearray(data)
    struct.pack_into(form, data, data.index(mark) + offset, *values)
    return bytes(data)


WAV, W64, CAF = ("soundfile", "WAV", "PCM_16"), ("soundfile", "W64", "PCM_16"), ("soundfile", "CAF", "PCM_16")
OPEN = [
    *((WAV, b"data", 4, "<I", size) for size in (0, 0xFFFFFFFF, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFDB)),
    (("soundfile", "RF64", "PCM_16"), b"ds64", 16, "<Q", 0),
    (("soundfile", "RF64", "PCM_16"), b"ds64", 16, "<Q", 2**64 - 1),
    *((W64, b"data\xf3\xac", 16, "<Q", size) for size in (0, 24, 2**63 - 1, 2**64 - 1)),
    *((("soundfile", "AIFF", "PCM_16"), b"SSND", 4, ">I", size) for size in (0, 0xFFFFFFFF, 0x7F000008)),
    (("soundfile", "AU", "PCM_16"), b".snd", 8, ">I", 0xFFFFFFFF),
    (CAF, b"data", 4, ">q", -1),
    (("av", "webm", "libopus"), b"\x18\x53\x80\x67", 4, ">Q", 0x01FFFFFFFFFFFFFF),
    (("av", "mp4", "aac", 48_000, {"movflags": "+faststart"}), b"mdat", -4, ">I", 0),
]


@pytest.mark.parametrize(
    ("case", "mark", "offset", "form", "size"), OPEN, ids=[f"{case[1]}-{size:x}" for case, _, _, _, size in OPEN]
)
def test_a_length_that_was_left_open_is_no_reason(case, mark, offset, form, size):
    data = made(*case)
    expected, rate = whole(data)
    left_open = patched(data, mark, offset, form, size)
    assert left_open != data
    assert extent(FilePart(io.BytesIO(left_open))) is None
    found, _ = whole(left_open)
    assert np.array_equal(found[: len(expected)], expected)
    assert len(found) - len(expected) <= 0.01 * rate  # RIFF's chunks after the sound count as sound


@pytest.mark.parametrize("kind", ["wav", "aiff", "au", "caf", "w64", "flac", "mp3", "matroska", "asf", "flv"])
def test_what_ffmpeg_writes_to_a_pipe_is_read(kind):
    codecs = {"flac": "flac", "mp3": "libmp3lame", "matroska": "flac", "asf": "wmav2", "flv": "aac"}
    codec = codecs.get(kind, "pcm_s16le" if kind in ("wav", "w64") else "pcm_s16be")
    samples, rate = whole(av_file(noise(SECONDS, RATE), kind, codec, RATE, pipe=True))
    assert abs(len(samples) / rate - SECONDS) < 0.08


@pytest.mark.parametrize("more", [36, 44])
def test_a_header_that_is_counted_in_is_no_reason(more):
    data = made(*WAV)
    assert np.array_equal(whole(patched(data, b"data", 4, "<I", len(data) - 44 + more))[0], whole(data)[0])


def test_chunks_after_the_sound_may_be_cut():
    data = made(*WAV)
    tail = b"LIST" + struct.pack("<I", 1_000) + b"INFO" + bytes(100)
    assert np.array_equal(whole(data + tail)[0], whole(data)[0])


# -- joined and damaged -----------------------------------------------------------------------


def opus(samples, rate=48_000):
    return sound_file(samples, rate, "OGG", "OPUS")


def vorbis(samples, rate=RATE):
    return sound_file(samples, rate, "OGG", "VORBIS")


@pytest.mark.parametrize(
    "parts",
    [
        lambda: [vorbis(tone(440)), vorbis(tone(700, 2))],
        lambda: [vorbis(tone(440)), vorbis(np.stack([tone(700), tone(300)], axis=1)), vorbis(tone(440, 0.05))],
        lambda: [opus(tone(440, rate=48_000)), opus(tone(700, rate=48_000))],
        lambda: [opus(tone(440, rate=48_000)), vorbis(tone(700, rate=48_000), 48_000)],
        lambda: [av_file(tone(440, rate=48_000), "ogg", "flac"), av_file(tone(700, rate=48_000), "ogg", "flac")],
    ],
    ids=["vorbis", "channels", "opus", "codecs", "flac"],
)
def test_a_chain_of_ogg_streams_is_read_whole(parts):
    files = parts()
    data = b"".join(files)
    joined, rate = whole(data)
    expected = np.concatenate([whole(data)[0] for data in files])
    assert np.array_equal(joined, expected)
    for seconds in (0.5, 1.3):
        wanted = int(seconds * rate)
        assert np.array_equal(read_file(io.BytesIO(data), lambda _, wanted=wanted: wanted)[0], expected[:wanted])


def test_a_chain_that_is_cut_or_changes_its_rate_is_refused():
    first, second = vorbis(tone(440)), vorbis(tone(700))
    in_last_page = (first[: len(first) - 500] + second, first[:-1] + second)
    for data in (first + second[: len(second) // 2], first[: len(first) // 2] + second, *in_last_page):
        with pytest.raises(DecodeError, match="cut short"):
            whole(data)
    with pytest.raises(DecodeError, match="sample rate changes from 44100 to 22050 Hz"):
        whole(first + vorbis(tone(440, rate=22_050), 22_050))


def mp3(seconds=1):
    return sound_file(noise(seconds, RATE), RATE, "MP3", "MPEG_LAYER_III")


ID3 = b"ID3\x03\x00\x00" + bytes([0, 0, 8, 16]) + bytes(8 * 128 + 16)


ID3V1 = b"TAG" + bytes(125)
LYRICS = b"LYRICSBEGININD0000210LYR00005hello000023LYRICS200"
APE = b"".join(
    b"APETAGEX" + struct.pack("<IIII8x", 2_000, 49, 1, flags) + item
    for flags, item in ((0xA0000000, struct.pack("<II", 3, 0) + b"Title\0abc"), (0x80000000, b""))
)
BETWEEN = [b"", ID3, ID3V1, ID3V1 + ID3, APE, LYRICS + ID3V1, APE + ID3V1 + ID3, bytes(5_000)]


@pytest.mark.parametrize("between", BETWEEN, ids=len)
def test_joined_mp3_is_read_whole(between):
    first, second = mp3(), mp3(2)
    samples, _ = whole(first + between + second)
    # The second file's count of frames comes out as a frame of silence, and its encoder's delay is kept.
    assert 3 * RATE - 1152 <= len(samples) <= 3 * RATE + 4 * 1152
    half = second[: len(second) // 2]
    for cut in (first + between + half, half + between + first, half + between + half):
        with pytest.raises(DecodeError, match="cut short"):
            whole(cut)


def test_mp3_joined_from_many_kinds_is_read_whole():
    parts = [
        mp3(),
        sound_file(noise(1, RATE), RATE, "MP3", "MPEG_LAYER_III", bitrate_mode="VARIABLE", compression_level=0.5),
        sound_file(np.stack([noise(1, RATE)] * 2, axis=1), RATE, "MP3", "MPEG_LAYER_III"),
        mp3(),
    ]
    assert 0 <= len(whole(b"".join(parts))[0]) - 4 * RATE <= 12 * 1152
    with pytest.raises(DecodeError, match="sample rate changes"):
        whole(mp3() + sound_file(noise(1, 22_050), 22_050, "MP3", "MPEG_LAYER_III"))


# Files of each format, one behind the other: read whole, or refused. FFmpeg reads the first of some.
@pytest.mark.parametrize(
    ("case", "seconds"),
    [
        (("soundfile", "FLAC", "PCM_16"), 2),
        (("av", "adts", "aac"), 2),
        (("av", "ac3", "ac3"), 2),
        (("av", "webm", "libopus"), 2),
        (("soundfile", "AU", "PCM_16"), None),
        (("soundfile", "RF64", "PCM_16"), None),
        (("soundfile", "W64", "PCM_16"), None),
        (("soundfile", "VOC", "PCM_16"), None),
        (("av", "caf", "libmp3lame"), None),
        (("av", "asf", "wmav2"), None),
        (("av", "asf", "libmp3lame"), None),
        (("av", "tta", "tta"), None),
        (("av", "flv", "aac", 44_100), None),
        (("av", "flv", "libmp3lame", 44_100), None),
        (("av", "mmf", "adpcm_yamaha", 44_100), None),
        (("av", "smjpeg", "pcm_s16le"), None),
        (("soundfile", "WAV", "PCM_16"), None),
        (("soundfile", "AIFF", "PCM_16"), None),
        (("soundfile", "WAV", "PCM_U8"), None),
        (("soundfile", "AIFF", "PCM_S8"), None),
        (("soundfile", "SVX", "PCM_S8"), None),
        (("soundfile", "AU", "PCM_S8"), None),
        (("soundfile", "CAF", "PCM_16"), None),
        (("av", "avi", "pcm_s16le"), None),
        (("av", "ipod", "aac"), None),
        (("av", "mov", "pcm_s16le"), None),
        (("av", "wv", "wavpack"), None),
    ],
    ids=lambda value: label(value) if isinstance(value, tuple) else str(value),
)
def test_joined_files_of_other_formats(case, seconds):
    data = made(*case, seconds=1)
    if seconds is None:
        odd = made(*case, seconds=0.743)
        for joined in (data + data, odd + odd, *(data + between + data for between in (b"\0", *BETWEEN))):
            with pytest.raises(DecodeError):
                whole(joined)
    else:
        samples, rate = whole(data + data)
        assert abs(len(samples) / rate - seconds) < 0.06


def test_alac_in_caf_of_ffmpeg():
    """It states its length in whole frames."""
    samples, rate = whole(made("av", "caf", "alac"))
    assert abs(len(samples) / rate - SECONDS) < 0.001


@pytest.mark.parametrize("tail", [bytes(500), b"x" * 500, b"TAG" + bytes(125)])
@pytest.mark.parametrize("make", [mp3, lambda: made("soundfile", "FLAC", "PCM_16"), lambda: vorbis(tone(440))])
def test_tags_before_and_bytes_after_the_sound_change_nothing(make, tail):
    data = make()
    head = ID3 if make is mp3 else b""
    assert np.array_equal(whole(head + data + tail)[0], whole(data)[0])


@pytest.mark.parametrize(
    # Zeros are packets of Opus, and MP4 has no checksum.
    "case",
    [*(case for case in STATED if case[2] in ("libopus", "flac") and case[1:3] != ("mp4", "libopus")), *UNSTATED[:5]],
    ids=label,
)
def test_a_hole_in_the_middle_is_found(case):
    data = made(*case)
    middle = len(data) // 2
    with pytest.raises(DecodeError):
        whole(data[:middle] + bytes(len(data) // 5) + data[middle + len(data) // 5 :])


def voc_of_blocks(*case):
    """A VOC file of blocks of 4,000 bytes: FFmpeg and libsndfile write one block."""
    data, size = made(*case), 4_000
    head, sound = data[:26], data[32:-1]
    parts = [sound[at : at + size] for at in range(0, len(sound), size)]
    blocks = [b"\x02" + len(part).to_bytes(3, "little") + part for part in parts[1:]]
    return (
        head + b"\x01" + (len(parts[0]) + 2).to_bytes(3, "little") + data[30:32] + parts[0] + b"".join(blocks) + b"\0"
    )


# FFmpeg passes over the packets of these whose heads are lost, and raises nothing.
@pytest.mark.parametrize("fill", [b"\0", b"\xff", np.random.default_rng(0).bytes(1_000)], ids=len)
@pytest.mark.parametrize(
    "case",
    [
        ("av", "asf", "wmav2"),
        ("av", "asf", "libmp3lame"),
        ("av", "asf", "pcm_s16le"),
        ("av", "avi", "libmp3lame", 44_100),
        ("av", "avi", "wmav2"),
        ("av", "avi", "adpcm_ms"),
        ("av", "flv", "nellymoser", 44_100),
        ("av", "flv", "aac", 44_100),
        ("av", "voc", "pcm_u8"),
    ],
    ids=label,
)
def test_a_hole_over_the_heads_of_packets_is_found(case, fill):
    data = voc_of_blocks(*case) if case[1] == "voc" else made(*case)
    samples, rate = whole(data)
    assert abs(len(samples) / rate - SECONDS) < 0.05
    assert np.array_equal(whole(data + ID3V1)[0], samples)
    middle, hole = len(data) // 2, len(data) // 5
    with pytest.raises(DecodeError):
        whole(data[:middle] + (fill * hole)[:hole] + data[middle + hole :])


def test_a_frame_of_mp3_less_is_found():
    data = mp3(3)
    with pytest.raises(DecodeError, match="cut short or damaged: it states 132,300 samples"):
        whole(data[:9_000] + b"junk" * 300 + data[9_000:])


def test_a_flipped_bit_of_flac_is_found(rng):
    # Without its CRC, 48 of 60 came out as sound.
    data = made("soundfile", "FLAC", "PCM_16")
    for place in rng.integers(len(data) // 10, len(data) - 10, 20):
        broken = bytearray(data)
        broken[place] ^= 1
        with pytest.raises(DecodeError):
            whole(bytes(broken))


@pytest.mark.parametrize("encode", [lambda: vorbis(noise(3, RATE)), lambda: opus(noise(3, 48_000))])
def test_a_recording_of_a_broadcast_begins_late(encode):
    data = encode()
    starts = [place for place in range(len(data)) if data.startswith(b"OggS", place)]
    headers = 2 if b"OpusHead" in data else 1 + max(0, data.count(b"\x05vorbis"))
    late = data[: starts[headers]] + data[starts[headers + 1] :]
    samples, rate = whole(late)
    assert 1 < len(samples) / rate < 2.9


@pytest.mark.parametrize("case", STATED + UNSTATED, ids=label)
def test_changed_bytes_are_sound_or_a_reason(rng, case):
    data = made(*case, seconds=0.2)
    for _ in range(30):
        broken = bytearray(data)
        for _ in range(rng.integers(1, 6)):
            broken[rng.integers(min(len(data), 300))] = rng.integers(256)
        with suppress(DecodeError):  # any other error is a failure
            assert whole(bytes(broken[: rng.integers(1, len(data) + 1)]))[0].ndim == 1


def test_an_encoding_that_nothing_knows():
    with pytest.raises(DecodeError, match="does not know its encoding"):
        whole(patched(made(*WAV), b"fmt ", 8, "<H", 0x7ABC))


def test_a_size_of_sound_that_would_begin_after_the_end():
    with pytest.raises(DecodeError, match="cut short"):
        whole(patched(made("av", "sox", "pcm_s32le", 8_000), b".SoX", 4, "<I", 0xFFFF))

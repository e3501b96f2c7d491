"""Embed folders of odd sound and image files, compare their decoding with other decoders, and print a table.

Fetch corpora such as the source distributions of mutagen and Pillow, then::

    python tests/odd_files.py FOLDER...

Each file is decoded in a process of its own, which may crash or hang. The other decoders are the `ffmpeg` command,
libsndfile (soundfile), and Pillow's own conversion of the first frame. Then all files are embedded with tiny models.
The exit status is 1 if a file made the process crash or hang, if a row is missing or superfluous, or if a file was
decoded to other samples or pixels than every other decoder that reads it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import multiprocessing
import shutil
import struct
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

SUFFIXES = {
    "sound": (
        "aac ac3 aif aifc aiff amr ape au caf dff dsf eac3 flac m4a m4b mid mka mkv mov mp1 mp2 mp3 mp4 mpc oga ofr "
        "ofs ogg oggtheora opus ra rf64 snd spx tak tta voc w64 wav webm wma wv"
    ),
    "images": (
        "apng avif blp bmp bufr cur dcx dds dib eps fit fits fli flc fpx gif grib h5 heic heif icns ico iim im j2c j2k "
        "jfif jp2 jpe jpeg jpg jpx jxl mpo msp p7 pbm pcd pcx pfm pgm png pnm ppm psd pxr qoi ras rgb sgi spider svg "
        "tga tif tiff wal webp wmf xbm xpm"
    ),
}
TIMEOUT = 60.0


def suffixes(kind: str) -> set[str]:
    """Return the suffixes of sound or image files."""
    return {f".{name}" for name in SUFFIXES[kind].split()}


# -- this library, in a process of its own ----------------------------------------------------


def decoded_here(kind: str, path: str) -> tuple[np.ndarray | None, float, str]:
    """Return the samples or pixels, the rate in Hz, and the reason of a refusal."""
    from embstore.encoders.image import decode_image
    from embstore.encoders.sound_files import read_file
    from embstore.errors import DecodeError

    try:
        with Path(path).open("rb") as file:
            if kind == "images":
                return np.asarray(decode_image(file)), 0.0, ""
            return *read_file(file, lambda rate: None), ""
    except DecodeError as error:
        return None, 0.0, error.reason


def serve(kind: str, channel: Connection) -> None:
    """Decode the files whose paths arrive."""
    warnings.simplefilter("ignore")
    with contextlib.suppress(EOFError):
        while True:
            channel.send(decoded_here(kind, channel.recv()))


class Decoder:
    """A process that decodes files, started again after a crash or a hang."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.process: Any = None

    def __call__(self, path: Path) -> tuple[np.ndarray | None, float, str]:
        if self.process is None:
            spawn = multiprocessing.get_context("spawn")
            self.channel, theirs = spawn.Pipe()
            self.process = spawn.Process(target=serve, args=(self.kind, theirs), daemon=True)
            self.process.start()
            theirs.close()
        try:
            self.channel.send(str(path))
            if self.channel.poll(TIMEOUT):
                return self.channel.recv()  # type: ignore[no-any-return]
            outcome = "hang"
        except (EOFError, OSError):
            outcome = "crash"
        self.process.kill()
        self.process = None
        return None, 0.0, outcome


# -- other decoders ---------------------------------------------------------------------------


def sound_by_ffmpeg(path: Path) -> tuple[np.ndarray, float] | None:
    """Return ``(samples, channels)`` and the rate. None if ffmpeg fails or prints an error."""
    command = ["ffmpeg", "-v", "error", "-nostdin", "-i", path, "-map", "0:a:0", "-c:a", "pcm_f32be", "-f", "au", "-"]
    done = subprocess.run(command, capture_output=True, timeout=TIMEOUT)
    if done.returncode or done.stderr or not done.stdout:
        return None
    start, _, _, rate, channels = struct.unpack_from(">5I", done.stdout, 4)
    samples = np.frombuffer(done.stdout, ">f4", offset=start)
    return samples.reshape(-1, channels).astype(np.float32), rate


def sound_by_libsndfile(path: Path) -> tuple[np.ndarray, float] | None:
    """Return ``(samples, channels)`` and the rate. None if libsndfile refuses the file."""
    import soundfile

    try:
        return soundfile.read(path, dtype="float32", always_2d=True)  # type: ignore[no-any-return]
    except (soundfile.LibsndfileError, TypeError, ValueError):  # a suffix without a header, a length of petabytes
        return None


def over_white(pixels: np.ndarray) -> np.ndarray:
    """Return RGB of eight bits for ``(height, width, 4)`` of eight or sixteen bits."""
    most = np.iinfo(pixels.dtype).max
    alpha = pixels[..., 3:] / most
    return (pixels[..., :3] / most * alpha + 1 - alpha) * 255


def image_by_ffmpeg(path: Path) -> tuple[np.ndarray, float] | None:
    """Return the first frame as ``(height, width, 3)``. None if ffmpeg fails or prints an error."""
    from PIL import Image

    command = [
        "ffmpeg",
        "-v",
        "error",
        "-nostdin",
        "-i",
        path,
        "-frames:v",
        "1",
        "-pix_fmt",
        "rgba",
        "-f",
        "image2pipe",
    ]
    done = subprocess.run([*command, "-c:v", "png", "-"], capture_output=True, timeout=TIMEOUT)
    if done.returncode or done.stderr or not done.stdout:
        return None
    with Image.open(io.BytesIO(done.stdout)) as image:
        return over_white(np.asarray(image.convert("RGBA"))), 0.0


def image_by_pillow(path: Path) -> tuple[np.ndarray, float] | None:
    """Return the first frame as Pillow converts it to RGBA, turned upright."""
    from PIL import Image, ImageOps

    Image.init()
    try:
        with Image.open(path, formats=[name for name in Image.ID if name != "EPS"]) as image:
            if image.mode.startswith("I"):  # its conversion clips these at 255
                return None
            return over_white(np.asarray(ImageOps.exif_transpose(image).convert("RGBA"))), 0.0
    except Exception:
        return None


OTHERS = {
    "sound": {"ffmpeg": sound_by_ffmpeg, "libsndfile": sound_by_libsndfile},
    "images": {"ffmpeg": image_by_ffmpeg, "Pillow": image_by_pillow},
}


def difference(kind: str, found: np.ndarray, other: np.ndarray) -> str:
    """Return how samples or pixels differ. Empty if they don't, but for the rounding of lossy decoders."""
    if kind == "images":
        if found.shape != other.shape:
            return f"shape {found.shape}, not {other.shape}"
        apart = np.abs(found - other.astype(float))
        return f"pixels differ by {apart.mean():.1f} on average" if apart.mean() > 2 else ""
    mono = other.mean(axis=1) if other.size else np.empty(0)
    if abs(len(found) - len(mono)) > 2 * 1152:
        return f"{len(found):,} samples, not {len(mono):,}"
    longer, shorter = (found, mono) if len(found) > len(mono) else (mono, found)
    shifts = (0, len(longer) - len(shorter))  # decoders keep or cut the delay of an encoder
    apart = min(float(np.abs(longer[at : at + len(shorter)] - shorter).max(initial=0.0)) for at in shifts)
    level = float(np.abs(mono).max(initial=0.0))
    return f"samples differ by {apart:.3f} of {level:.3f}" if apart > 0.02 * max(level, 0.05) else ""


# -- the report -------------------------------------------------------------------------------


def embed_folder(kind: str, root: str, channel: Connection) -> None:
    """Embed a folder with a tiny model, and send the stored names and the failed ones."""
    import embstore
    from embstore.sources import Folder
    from tests._helpers import tiny_models

    warnings.simplefilter("ignore")
    logging.disable()
    with tempfile.TemporaryDirectory() as place:
        model = (tiny_models.ast if kind == "sound" else tiny_models.vit)(Path(place) / "model")
        encoder = embstore.from_pretrained(model)
        source = Folder(root, name="odd", pattern="**", suffixes=suffixes(kind), file_id=str)
        result = embstore.embed(source, encoder, Path(place) / "cache")
        stored = {embstore.Key.parse(key).file_id for key in result.store.select().keys} if result.store else set()
        channel.send((stored, {embstore.Key.parse(failure.key).file_id for failure in result.failed}))


def embedded(kind: str, root: Path) -> tuple[set[str], set[str]] | None:
    """Return the names of the stored and of the failed files of a folder. None after a crash or a hang."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=embed_folder, args=(kind, str(root), theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(10 * TIMEOUT) else None
    except EOFError:
        return None
    finally:
        process.kill()


def compared(kind: str, path: Path, decoder: Decoder) -> tuple[str, str]:
    """Return the outcome of a file, and the details."""
    found, rate, reason = decoder(path)
    if reason in ("crash", "hang"):
        return reason, ""
    others = {name: other(path) for name, other in OTHERS[kind].items() if name != "ffmpeg" or shutil.which("ffmpeg")}
    read = {name: other for name, other in others.items() if other is not None}
    if found is None:
        return ("refused, as by all" if not read else "refused, read elsewhere"), f"{', '.join(read)}: {reason}"
    apart = {name: difference(kind, found, other) for name, (other, _) in read.items()}
    for name, (_, other_rate) in read.items():
        if len(found) and rate != other_rate:
            apart[name] = f"{rate} Hz, not {other_rate}"
    if not apart:
        return "read here alone", ""
    if not any(apart.values()):
        return "equal", ""
    details = "; ".join(f"{name}: {text}" for name, text in apart.items() if text)
    return ("differs" if all(apart.values()) else "equal to one"), details


def report(kind: str, root: Path) -> bool:
    """Print the table of one folder. Return whether all is well."""
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.suffix.lower() in suffixes(kind))
    if not files:
        return True
    decoder = Decoder(kind)
    outcomes = {path: compared(kind, path, decoder) for path in files}
    counts = Counter(outcome for outcome, _ in outcomes.values())
    rows = embedded(kind, root)
    stored, failed = rows or (set(), set())
    names = {path.relative_to(root).as_posix() for path in files}
    print(f"{root.name} ({kind}): {len(files)} files, {len(stored)} rows, {len(failed)} failed")
    for outcome, count in counts.most_common():
        print(f"  {count:5} {outcome}")
    for path, (outcome, details) in outcomes.items():
        if outcome not in ("equal", "refused, as by all"):
            print(f"    {outcome}: {path.relative_to(root)}: {details}")
    if rows is None:
        print("    embedding crashed or hung")
    elif stored | failed != names or stored & failed:
        print(f"    neither stored nor failed: {sorted(names - stored - failed)}; both: {sorted(stored & failed)}")
    sound = rows is not None and stored | failed == names and not stored & failed
    return sound and not counts.keys() & {"crash", "hang", "differs"}


def main() -> int:
    """Report on the folders of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    folders = parser.parse_args().folders
    warnings.simplefilter("ignore")
    well = [report(kind, folder.absolute()) for folder in folders for kind in ("sound", "images")]
    return 0 if all(well) else 1


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    sys.exit(main())

"""What a store saves: time to encode with the real encoder, against time to open and load from the store.

    python -m benchmarks.encode.load_speedup --quick      100 texts, 4 clips, once: half a minute
    python -m benchmarks.encode.load_speedup              2,000 texts, 165 clips, five times: an hour

Texts are docstrings of the standard library through MiniLM with its real weights. Clips are recordings (FLAC; Debian's
sonic-pi-samples, or made of noise where there are none) through AST at full size, 12 layers of 768, with random weights
from a fixed seed: that changes what the rows say, and nothing of how long they take. Stored are the mean of the last
layer and, for audio, all of its tokens as well. Two things are told apart: encoding against opening and loading all
that was stored, in a process that is there already; and the whole first process (imports, the model, all samples)
against the whole second.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import embstore
from benchmarks.report.measure import EXAMPLES, add_options
from benchmarks.report.tables import print_report, save
from benchmarks.workloads.turns import Measurement
from embstore.sources import Folder

sys.path.insert(0, str(EXAMPLES))
OURS, THEIRS = "embstore", "encoding"
SECONDS, RATE = 5.0, 16_000

# The job, as anybody writes it, the same for the first and the second run; prints shapes and sums of what is in RAM.
JOB = """
import json, sys
import numpy as np, embstore
from embstore.sources import Folder
model, folder, pattern, cache, options, batch = json.load(sys.stdin)
encoder = embstore.from_pretrained(model, **options)
source = Folder(folder, name="samples", pattern=pattern)
result = embstore.embed(source, encoder, cache, batch_size=batch)
rows = {name: result.store.select().to_numpy(name) for name in result.store.fields}
sums = {name: [values.shape, float(values.sum(dtype=np.float64))] for name, values in rows.items()}
print(json.dumps([sums, result.encoded, str(result.path)]))
"""


@dataclass(frozen=True)
class Job:
    """Samples, their encoder, and how they are named."""

    data: str
    model: Path
    folder: Path
    pattern: str
    options: dict[str, object]
    batch: int

    def run(self, cache: Path) -> tuple[float, list[object]]:
        """Run the whole process; gives seconds, and what it prints."""
        given = json.dumps([str(self.model), str(self.folder), self.pattern, str(cache), self.options, self.batch])
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", JOB], input=given, capture_output=True, text=True)
        took = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(f"{self.data}: {done.stderr[-2000:]}")
        return took, json.loads(done.stdout)


def texts(folder: Path, count: int) -> Job:
    from docstrings import Docstrings
    from minilm import shipped_folder

    found = {str(sample.key): sample.load() for sample in Docstrings(lambda module: True)}
    keys = sorted(found, key=embstore.digest_of)[:count]  # in an order that has nothing to do with their length
    for place, key in enumerate(keys):
        path = folder / f"class_{place % 10}" / f"{place:06d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(found[key])
    return Job(f"text, {len(keys):,} docstrings, MiniLM", shipped_folder(), folder, "{class}/*.txt", {}, 32)


def clips(folder: Path, model: Path, samples: Path, count: int) -> Job:
    from audio_demo import make_model

    make_model("ast", model)
    folder.mkdir(parents=True)
    recordings = sorted(samples.glob("*.flac"))[:count] if samples.is_dir() else []
    for recording in recordings:
        shutil.copy(recording, folder)
    if not recordings:
        _noise(folder, count)
    what = "recordings" if recordings else "clips of noise"
    options = {"duration": SECONDS, "fields": ["mean", "last_hidden_state"]}
    return Job(f"audio, {len(recordings) or count} {what}, AST", model, folder, "{class}_*.flac", options, 8)


def _noise(folder: Path, count: int) -> None:
    import av

    rng = np.random.default_rng(0)
    for place in range(count):
        wave = np.rint(2**15 * 0.1 * rng.standard_normal(int(SECONDS * RATE))).astype(np.int16)
        with av.open(folder / f"noise_{place:04d}.flac", "w") as file:
            stream = file.add_stream("flac", rate=RATE)
            stream.codec_context.layout, stream.codec_context.format = "mono", "s16"
            frame = av.AudioFrame.from_ndarray(wave[np.newaxis], format="s16", layout="mono")
            frame.sample_rate = RATE
            file.mux(stream.encode(frame))
            file.mux(stream.encode(None))


def measured(job: Job, folder: Path, repeat: int) -> Iterator[Measurement]:
    """Run the first process `repeat` times on empty caches, and the second after each."""
    print(f"{job.data} …", file=sys.stderr, flush=True)
    first: list[float] = []
    second: list[float] = []
    encoding: list[float] = []
    loading: list[float] = []
    for turn in range(repeat):
        cache = folder / f"cache-{turn}"
        took, (sums, encoded, path) = job.run(cache)
        first.append(took)
        again, (sums_again, encoded_again, _) = job.run(cache)
        second.append(again)
        if sums != sums_again or encoded_again or not encoded:
            raise SystemExit("the second run gives other rows, or encoded again: nothing else is worth measuring")
        encoding.append(_encoded(job))
        loading.append(_loaded(Path(str(path))))
        shutil.rmtree(cache)
    yield Measurement("load-speedup", job.data, {OURS: loading, THEIRS: encoding}, detail="open and load")
    yield Measurement("load-speedup", job.data, {OURS: second, THEIRS: first}, detail="whole process")


def _encoded(job: Job) -> float:
    """Time decoding and encoding alone, with a model that is loaded and warm; like lengths in a batch, none stored."""
    encoder = _loaded_encoder(job)
    source = sorted(Folder(job.folder, name="samples", pattern=job.pattern), key=lambda sample: sample.stamp.size)
    began = time.perf_counter()
    for start in range(0, len(source), job.batch):
        encoder.encode([encoder.decode(sample.read().value) for sample in source[start : start + job.batch]])
    return time.perf_counter() - began


_encoders: dict[str, embstore.encoders.base.BaseEncoder] = {}


def _loaded_encoder(job: Job) -> embstore.encoders.base.BaseEncoder:
    if job.data not in _encoders:
        encoder = embstore.from_pretrained(job.model, **job.options)
        sample = next(iter(Folder(job.folder, name="samples", pattern=job.pattern)))
        encoder.encode([encoder.decode(sample.read().value)])
        _encoders[job.data] = encoder
    return _encoders[job.data]


def _loaded(path: Path) -> float:
    """Time opening the store and loading all of its fields to RAM: the median of nine."""

    def load() -> object:
        store = embstore.open(path)
        return [store.select().to_numpy(name) for name in store.fields]

    return statistics.median(_seconds(load) for _ in range(9))


def _seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=Path, default=Path("demo-audio/usr/share/sonic-pi/samples"))
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--clips", type=int, default=165, help="as many recordings as make demo-audio has")
    parser.add_argument("--only", nargs="+", choices=("text", "audio"), default=["text", "audio"])
    add_options(parser, "load_speedup", repeat=5, of="first processes")
    parser.add_argument("--quick", action="store_true", help="100 texts, 4 clips, and one first process")
    args = parser.parse_args()
    if args.quick:
        args.texts, args.clips, args.repeat = 100, 4, 1
    return args


def main() -> None:
    args = parsed()
    args.data.mkdir(parents=True, exist_ok=True)
    done: list[Measurement] = []
    with tempfile.TemporaryDirectory(dir=args.data, prefix="load-speedup-") as name:
        folder = Path(name)
        if "text" in args.only:
            done += measured(texts(folder / "texts", args.texts), folder, args.repeat)
        if "audio" in args.only:
            done += measured(clips(folder / "clips", folder / "ast", args.samples, args.clips), folder, args.repeat)
        save(done, args.results, args.data)
    print_report(done)


if __name__ == "__main__":
    main()

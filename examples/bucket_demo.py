"""Demonstrate a store in a bucket: three writers, one of which is killed, then a mirror and an epoch of training.

``make demo-bucket`` runs it. The bucket is a local S3 server, which starts here and loses its data at the end.
"""

import argparse
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from s3_server import s3_server

import embstore

URL = "s3://team/pets.zarr"
CLASSES = ["cat", "dog", "fox", "owl"]
DIM, UNIT = 256, 100
CONFIG = {"encoder": "demo", "dim": DIM}


def encode(keys: list[str]) -> np.ndarray:
    """Return rows of four noisy classes. A real encoder takes longer: this one waits for 0.05 s."""
    time.sleep(0.05)
    centres = np.random.default_rng(0).normal(size=(len(CLASSES), DIM))
    rows = []
    for key in keys:
        name, _, label = key.partition(":")
        noise = np.random.default_rng(int(name)).normal(size=DIM)
        rows.append(centres[CLASSES.index(label)] + 4 * noise)
    return np.array(rows, np.float32)


def units(share: int, samples: int) -> Iterator[list[str]]:
    """Yield the keys of one of three shares, a commit at a time."""
    keys = [f"{i}:{CLASSES[i % 4]}" for i in range(share, samples, 3)]
    for start in range(0, len(keys), UNIT):
        yield keys[start : start + UNIT]


def write(share: int, samples: int, options: dict[str, object], notes: Path) -> None:
    """Encode the samples of a share that are not stored, and note each acknowledged key in a file."""
    store = embstore.open(URL, "a", config=CONFIG, storage_options=options)
    for keys in units(share, samples):
        missing = store.missing(keys)
        if missing:
            store.append(missing, encode(missing), if_exists="skip")
        with notes.open("a") as file:
            file.writelines(f"{key}\n" for key in keys)


def run_writers(samples: int, options: dict[str, object], folder: Path) -> set[str]:
    """Run three writers, kill one, and let another process repeat its share. Return the acknowledged keys."""
    spawn = multiprocessing.get_context("spawn")  # obstore does not survive a fork

    def started(share: int, name: str) -> multiprocessing.process.BaseProcess:
        process = spawn.Process(target=write, args=(share, samples, options, folder / name))
        process.start()
        return process

    writers = [started(share, f"writer {share}") for share in range(3)]
    victim, notes = writers[1], folder / "writer 1"
    while not notes.exists() or len(notes.read_text().splitlines()) < samples / 9:
        time.sleep(0.01)
    os.kill(victim.pid or 0, signal.SIGKILL)
    victim.join()
    acknowledged = len(notes.read_text().splitlines())
    print(f"  writer 1 was killed: {acknowledged:,} of its {samples // 3:,} rows were acknowledged")
    writers[1] = started(1, "writer 3")
    for process in writers:
        process.join()
        if process.exitcode:
            raise SystemExit("a writer failed")
    print("  writer 3 repeated its share: stored keys were not encoded again")
    return {key for file in folder.iterdir() for key in file.read_text().splitlines()}


def check(acknowledged: set[str], options: dict[str, object]) -> None:
    """Print which of the acknowledged rows were lost, stored twice or changed."""
    store = embstore.open(URL, storage_options=options)
    keys = list(store)
    lost = acknowledged - set(keys)
    twice = len(keys) - len(set(keys))
    some = np.random.default_rng(1).choice(sorted(acknowledged - lost), 500, replace=False).tolist()
    changed = int((store[some] != encode(some)).any(axis=1).sum())
    print(f"  {len(acknowledged):,} keys acknowledged, {len(store):,} rows stored")
    print(f"  lost: {len(lost)}, stored twice: {twice}, changed: {changed} of {len(some)} compared")
    if lost or twice or changed:
        raise SystemExit("rows were lost or damaged")


def epoch(view: embstore.View, rng: np.random.Generator) -> np.ndarray:
    """Return the weights of a softmax classifier after one epoch of random batches of 256 rows."""
    labels = view.labels(CLASSES)
    weights = np.zeros((DIM, len(CLASSES)), np.float32)
    order = rng.permutation(len(view))
    for start in range(0, len(order), 256):
        batch = order[start : start + 256]
        rows = view[batch].to_numpy()
        scores = rows @ weights
        chances = np.exp(scores - scores.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        chances[np.arange(len(batch)), labels[batch]] -= 1
        weights -= 0.001 * rows.T @ chances / len(batch)
    return weights


def read(options: dict[str, object], mirror: Path) -> None:
    """Pull twice, train on the mirror, and print what the reads cost."""
    for title in ("pull", "pull again"):
        start = time.perf_counter()
        pulled = embstore.pull(URL, mirror, storage_options=options, progress=False)
        seconds = time.perf_counter() - start
        print(f"  {title:<24}{pulled.fetched} parts, {pulled.nbytes / 1e6:.1f} MB in {1000 * seconds:,.0f} ms")
    for title, place, how in [
        ("epoch from the mirror", mirror, {}),
        ("epoch from the bucket", URL, {"storage_options": options}),
    ]:
        start, cpu = time.perf_counter(), time.process_time()
        view = embstore.open(place, **how).select()
        weights = epoch(view, np.random.default_rng(0))
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        print(f"  {title:<24}{1000 * seconds:,.0f} ms, of which processor {1000 * cpu:,.0f} ms")
    right = (view.to_numpy() @ weights).argmax(axis=1) == view.labels(CLASSES)
    print(f"  right after the epoch   {100 * right.mean():.1f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=12_000)
    arguments = parser.parse_args()
    with s3_server("team") as endpoint, tempfile.TemporaryDirectory() as folder:
        options: dict[str, object] = {"endpoint_url": endpoint, "region_name": "us-east-1", "anon": True}
        notes = Path(folder) / "notes"
        notes.mkdir()
        print(f"\nthree writers on {URL}, {UNIT} rows a commit")
        acknowledged = run_writers(arguments.samples, options, notes)
        print("\nwhat was lost")
        check(acknowledged, options)
        print("\nmaintenance")
        with embstore.open(URL, "a", config=CONFIG, storage_options=options) as store:
            store.compact()
        removed = embstore.tidy(URL, older_than=0, storage_options=options)
        print(f"  compacted, then {removed.objects} old objects removed, {removed.nbytes / 1e6:.1f} MB")
        print("\nwhat the reads cost")
        read(options, Path(folder) / "pets.mirror")


if __name__ == "__main__":
    main()

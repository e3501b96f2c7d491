"""Attacks on the storage that go on for a given time: ``make test-torture``. They print how much they tried.

``EMBSTORE_TORTURE`` is the time of each in seconds. Without it they are skipped.
"""

import collections
import fcntl
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import embstore
from tests._helpers import kinds
from tests._helpers.crash import Journal, end_of, run_together, start
from tests._helpers.kinds import assert_rows, key, put, rows_of
from tests._helpers.mounts import disk_of, mounted
from tests.torture.changes import KINDS_OF_FAULT, Writer

SECONDS = float(os.environ.get("EMBSTORE_TORTURE", "0"))
pytestmark = pytest.mark.skipif(not SECONDS, reason="set EMBSTORE_TORTURE to a number of seconds, or make test-torture")

_SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN
_NO_LOG_FLUSH = struct.pack("I", 2)


@pytest.fixture
def report(capsys):
    """Print a line past pytest's capture."""

    def say(line):
        with capsys.disabled():
            print(f"\n{line}")

    return say


@pytest.fixture
def until():
    """The seed of each round, until the time is over."""

    def rounds():
        end, seed = time.monotonic() + SECONDS, 0
        while time.monotonic() < end:
            yield seed
            seed += 1

    return rounds


# -- power cuts -----------------------------------------------------------------------------------


def cut_power(top):
    """Stop an ext4 file system at once: only bytes that are on the medium by then stay."""
    descriptor = os.open(top, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _SHUTDOWN, _NO_LOG_FLUSH)
    except OSError as error:
        pytest.skip(f"the power of a file system can't be cut here: {error}")
    finally:
        os.close(descriptor)


def _work(path, journal, seed):
    store = embstore.open(path, "r+")
    rng = np.random.default_rng(seed)
    number = 1000 * (seed + 1)
    while True:
        put(store, range(number, number + 3))
        journal.acknowledge(f"+{number}")
        if rng.random() < 0.2:
            store.erase([key(number + 1)])
            journal.acknowledge(f"-{number + 1}")
        if rng.random() < 0.1:
            store.compact()
        number += 3


def _found_after(path, stored, gone, cuts):
    """Check the store after a cut. Return the numbers of its rows, of which it keeps some hundreds."""
    store = embstore.open(path, check="all")
    missing = {i for i in stored if key(i) not in store}
    assert len(missing) <= 1, (cuts, missing)  # an erase of one row may have been made and not acknowledged
    assert not [i for i in gone if key(i) in store]
    numbers = sorted(stored - missing)
    found = store.fetch([key(i) for i in numbers], "embedding")
    assert_rows(found, rows_of(store.fields["embedding"], numbers))
    with embstore.open(path, "r+") as writer:
        writer.append([f"after:{cuts}"], np.full((1, 8), 1, np.float32))
        old = numbers[:-100] if len(numbers) > 600 else []
        writer.delete([key(i) for i in old])
        if old:
            writer.compact()
    checked = embstore.verify(path)
    assert checked.ok, str(checked)
    return set(numbers) - set(old)


@pytest.mark.parametrize("options", ["loop", "loop,data=journal", "loop,nobarrier"])
def test_power_cuts_of_a_real_file_system(tmp_path, report, until, options):
    """Acknowledged rows are there after each cut, erased ones are not, and the store is sound."""
    image, top, path = tmp_path / "image", tmp_path / "disk", tmp_path / "disk" / "store.zarr"
    rng, stored, acknowledged = np.random.default_rng(0), set(), 0
    with disk_of(image, top, nbytes=96 * 2**20, options=options):
        kinds.new(path, "raw").close()
    top.rmdir()
    for cuts in until():
        journal = Journal()
        with mounted(top, "-o", options, image):
            child = start(lambda journal=journal, cuts=cuts: _work(path, journal, cuts))
            with journal.reader() as lines:
                first = lines.readline()
                time.sleep(rng.uniform(0, 0.2))
                cut_power(top)
                os.kill(child, signal.SIGKILL)
                end_of(child)
                done = [first, *lines]
        top.rmdir()
        gone = {int(line[1:]) for line in done if line.startswith("-")}
        for line in done:
            if line.startswith("+"):
                stored |= set(range(int(line[1:]), int(line[1:]) + 3))
        stored -= gone
        acknowledged += len(done)
        with mounted(top, "-o", options, image):
            stored = _found_after(path, stored, gone, cuts)
        top.rmdir()
    report(f"power cuts of ext4 ({options}): {cuts + 1:,}, with {acknowledged:,} acknowledged changes")


# -- faults of system calls -----------------------------------------------------------------------


def test_system_calls_that_fail(tmp_path, report, until):
    """Each change is there whole or not at all, and the next one works."""
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc here")
    library = tmp_path / "faults.so"
    source = Path(__file__).with_name("faults.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    total = collections.Counter()
    for seed in until():
        path = tmp_path / f"{seed}.zarr"
        kinds.base(path, ("raw", "ragged", "zstd", "bfloat16")[seed % 4])
        rate = (30, 100, 400)[seed % 3]
        command = [sys.executable, "-m", "tests.torture.changes", path, str(seed), str(rate), "60"]
        done = subprocess.run(
            command, env={**os.environ, "LD_PRELOAD": str(library)}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"seed {seed}: {done.stderr}"
        names = ("changes", "failed changes", *KINDS_OF_FAULT)
        total.update(dict(zip(names, map(int, done.stdout.split()), strict=True)))
        shutil.rmtree(path)
    report("system calls that fail: " + ", ".join(f"{count:,} {name}" for name, count in total.items()))


# -- eight writers --------------------------------------------------------------------------------


def test_eight_writers_beside_their_models(path, report, until):
    """Each writer has rows of its own, and finds them as its model says, beside the others."""
    kinds.new(path, "raw").close()
    changes = 0
    for seed in until():
        journal = Journal()

        def work(number, seed=seed, journal=journal):
            rng = np.random.default_rng((seed, number))
            with embstore.open(path, "r+", lock_timeout=120) as store:
                writer = Writer(store, (seed * 8 + number + 1) * 10_000, rng, compacts=number < 2)
                for turn in range(25):
                    writer.step()
                    if turn % 5 == 0:
                        writer.check()
                writer.check()
                journal.acknowledge(f"{writer.changes} {' '.join(map(str, sorted(writer.model)))}")

        assert run_together(*(lambda number=number: work(number) for number in range(8))) == [0] * 8, f"seed {seed}"
        with journal.reader() as lines:
            counts = [[int(word) for word in line.split()] for line in lines]
        changes += sum(count for count, *_ in counts)
        expected = {key(i) for _, *numbers in counts for i in numbers}
        store = embstore.open(path, check="all")
        assert set(store) == expected
        found = embstore.verify(path)
        assert found.ok, str(found)
        with embstore.open(path, "r+") as writer:
            writer.delete(list(expected))
            writer.compact()
    report(f"eight writers beside their models: {changes:,} changes in {seed + 1:,} rounds")

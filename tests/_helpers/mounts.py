"""Mounts for tests. They need root and a kernel that allows them. Elsewhere the tests are skipped."""

import contextlib
import gc
import subprocess
import time

import pytest


@contextlib.contextmanager
def mounted(target, *options):
    """Mount at `target`, a folder that is made, with the options of the command ``mount``. Skip if that is refused."""
    target.mkdir()
    try:
        done = subprocess.run(["mount", *map(str, options), target], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no command mount here")
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    try:
        yield target
    finally:
        gc.collect()  # open folders keep a file system mounted
        for lazy in (*[[]] * 20, ["--lazy"]):
            if not subprocess.run(["umount", *lazy, target], capture_output=True, check=False).returncode:
                break
            time.sleep(0.1)


def bound(source, target):
    """Mount the folder `source` a second time, at `target`."""
    return mounted(target, "--bind", source)


@contextlib.contextmanager
def overlaid(lower, scratch):
    """Mount an overlay over the folder `lower`, as images of containers have it."""
    upper, work = scratch / "upper", scratch / "work"
    upper.mkdir(parents=True)
    work.mkdir()
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    with mounted(scratch / "overlay", "-t", "overlay", "overlay", "-o", options) as target:
        yield target


@contextlib.contextmanager
def disk_of(image, target, *, nbytes, options="loop"):
    """Make an ext4 file system in the file `image`, and mount it at `target`."""
    with image.open("wb") as file:
        file.truncate(nbytes)
    try:
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no ext4 file system can be made here: {error}")
    with mounted(target, "-o", options, image):
        yield target

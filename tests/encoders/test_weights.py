"""Digests of files: remembered only where nothing can have changed, and never trusted beyond that."""

import contextlib
import json
import logging
import mmap
import os
import shutil
import subprocess
import sys
import time
from hashlib import blake2b, file_digest
from pathlib import Path

import pytest

from embstore import errors
from embstore._engine.io import stamps
from embstore.encoders import weights
from embstore.encoders.weights import digest_file, digest_files, identities, joined

LONG_AGO = 1_700_000_000 * 10**9 + 123_456_789


def expected(data):
    return blake2b(data, digest_size=16).hexdigest()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Remember digests here, of small files too, and of those that were written just now."""
    home = tmp_path / "home"
    monkeypatch.setenv("EMBSTORE_HOME", str(home))
    monkeypatch.setattr(weights, "_LARGE", 0)
    monkeypatch.setattr(stamps, "_SETTLED_NS", 0)
    return home


@pytest.fixture
def read(monkeypatch):
    """The names of files whose bytes were read, in turn."""
    names = []

    def counted(file, digest):
        names.append(Path(file.name).name)
        return file_digest(file, digest)

    monkeypatch.setattr(weights, "file_digest", counted)
    return names


@pytest.fixture
def write(tmp_path):
    """Write a file that was last changed long ago."""

    def write(data, name="model.safetensors", mtime=LONG_AGO):
        path = tmp_path / name
        path.write_bytes(data)
        os.utime(path, ns=(mtime, mtime))
        return path

    return write


def memory(home):
    return json.loads((home / "digests.json").read_text())


# -- one file ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 2**20, 2**20 + 1, 3 * 2**20])
def test_the_digest_is_that_of_the_bytes(write, rng, size):
    data = rng.bytes(size)
    path = write(data)
    assert digest_file(path) == digest_file(str(path)) == expected(data)
    assert len(digest_file(path)) == 32


def test_a_file_is_read_once(write, read, home):
    path = write(b"weights")
    assert [digest_file(path) for _ in range(3)] == [expected(b"weights")] * 3
    assert digest_file(path) == expected(b"weights")
    assert read == ["model.safetensors"]
    found = path.stat()
    assert memory(home) == {str(path): [7, LONG_AGO, found.st_ctime_ns, found.st_ino, expected(b"weights")]}
    assert digest_file(path, recall=False) == expected(b"weights")
    assert len(read) == 2


def test_a_small_file_is_read_each_time(write, read, home, monkeypatch):
    monkeypatch.setattr(weights, "_LARGE", 8)
    path = write(b"weights")
    assert digest_file(path) == digest_file(path) == expected(b"weights")
    assert len(read) == 2
    assert not home.exists()


def test_links_are_followed_to_one_entry(write, read, tmp_path, home):
    path = write(b"weights")
    link = tmp_path / "link"
    link.symlink_to(path)
    assert digest_file(path) == digest_file(link)
    assert len(read) == len(memory(home)) == 1
    other = write(b"others!", "other")
    link.unlink()
    link.symlink_to(other)
    assert digest_file(link) == expected(b"others!")


@pytest.mark.parametrize("data", [b"WEIGHTS", b"more weights"])
def test_a_file_that_changed_is_read_again(write, read, data):
    digest_file(write(b"weights"))
    path = write(data, mtime=LONG_AGO + (1 if len(data) == 7 else 0))
    assert digest_file(path) == expected(data)
    assert len(read) == 2


REPLACEMENTS = {
    "renamed over it": lambda path, other: os.replace(other, path),
    "cp -p": lambda path, other: shutil.copy2(other, path),
    "rewritten, and its mtime put back": lambda path, other: (path.write_bytes(other.read_bytes()), long_ago(path)),
    "one byte changed in a map": lambda path, other: (change_mapped(path), long_ago(path)),
    "a link to it": lambda path, other: (path.unlink(), path.symlink_to(other)),
    "a hard link to it": lambda path, other: (path.unlink(), os.link(other, path)),
}
"""Ways to other bytes of the same size and mtime."""


def long_ago(path):
    os.utime(path, ns=(LONG_AGO, LONG_AGO))


def change_mapped(path):
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[:] = b"WEIGHTS"


@pytest.mark.parametrize("way", REPLACEMENTS)
def test_other_bytes_of_the_same_size_and_mtime_are_read(write, read, way):
    path = write(b"weights")
    other = write(b"WEIGHTS", "other")
    assert digest_file(path) == expected(b"weights")
    REPLACEMENTS[way](path, other)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (7, LONG_AGO)
    assert digest_file(path) == expected(b"WEIGHTS")
    assert len(read) == 2


@pytest.mark.parametrize("seconds", [0, 1.5, -3600])
def test_a_file_changed_just_now_is_not_remembered(write, read, home, seconds, monkeypatch):
    monkeypatch.setattr(stamps, "_SETTLED_NS", 2 * 10**9)
    path = write(b"weights", mtime=time.time_ns() - int(seconds * 1e9))
    assert digest_file(path) == digest_file(path) == expected(b"weights")
    assert len(read) == 2
    assert not home.exists()


@pytest.mark.parametrize("change", ["grown", "replaced"])
def test_a_file_that_changes_while_it_is_digested(write, home, monkeypatch, change):
    path = write(b"weights")

    def changing(file, digest):
        if change == "replaced":
            os.replace(write(b"WEIGHTS", "new"), path)
        found = file_digest(file, digest)
        if change == "grown":
            with path.open("ab") as other:
                other.write(b"!")
        return found

    monkeypatch.setattr(weights, "file_digest", changing)
    with pytest.raises(errors.WeightsChangedError) as caught:
        digest_file(path)
    assert caught.value.path == path
    assert not home.exists()


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        digest_file(tmp_path / "gone")
    with pytest.raises(IsADirectoryError):
        digest_file(tmp_path)


# -- several files ----------------------------------------------------------------------------


def test_one_digest_of_several_files(write, tmp_path):
    write(b"one", "a.safetensors")
    write(b"two", "b.safetensors")

    def both(*names):
        return joined(digest_files(tmp_path, names))

    before = both("a.safetensors", "b.safetensors")
    assert before == both("b.safetensors", "a.safetensors", "a.safetensors")
    assert len(before) == 32
    one = both("a.safetensors")
    assert one not in (before, digest_file(tmp_path / "a.safetensors"))
    write(b"one", "c.safetensors")
    assert both("c.safetensors") != one
    write(b"two", "a.safetensors", LONG_AGO + 1)
    write(b"one", "b.safetensors", LONG_AGO + 1)
    assert both("a.safetensors", "b.safetensors") != before


def test_files_that_are_not_there(write, tmp_path):
    write(b"one", "a")
    for ask in (digest_files, identities):
        with pytest.raises(errors.ModelFilesError) as caught:
            ask(tmp_path, ["a", "1_Pooling/config.json"])
        assert (caught.value.path, caught.value.missing) == (tmp_path, "1_Pooling/config.json")


def test_identities_tell_that_a_file_changed(write, tmp_path):
    write(b"one", "a")
    write(b"two", "b")
    before = identities(tmp_path, ["b", "a"])
    assert before == identities(tmp_path, {"a", "b"})
    assert [(name, found.size, found.mtime) for name, found in before.items()] == [
        ("a", 3, LONG_AGO),
        ("b", 3, LONG_AGO),
    ]
    write(b"TWO", "b")
    assert identities(tmp_path, ["a", "b"]) != before


# -- the memory -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"path": 3}', b"[" * 100_000, b'{"a": [1, 2, 3, 4, "x"]}'],
    ids=["empty", "torn", "list", "null", "binary", "number", "deep", "entry"],
)
def test_a_memory_that_is_no_memory_is_passed_over(write, read, home, text, caplog):
    home.mkdir()
    (home / "digests.json").write_bytes(text)
    path = write(b"weights")
    with caplog.at_level(logging.DEBUG, "embstore"):
        assert digest_file(path) == digest_file(path) == expected(b"weights")
    assert len(read) == 1  # it was replaced by one that is
    assert list(memory(home)) == [str(path)]


@pytest.mark.parametrize(
    "change",
    [
        lambda size, *rest: [size + 1, *rest],
        lambda *entry: [*entry[:2], entry[2] + 1, *entry[3:]],
        lambda *entry: [*entry[:3], entry[3] + 1, entry[4]],
        lambda size, mtime, *rest: [size, float(mtime), *rest],
        lambda *entry: [*entry[:4], entry[4][:-1]],
        lambda *entry: [*entry[:4], entry[4].upper() + "g"],
        lambda *entry: [*entry[:4], None],
        lambda *entry: [*entry[:4]],
        lambda *entry: entry[4],
    ],
)
def test_an_entry_that_is_not_this_files_is_not_used(write, read, home, change):
    path = write(b"weights")
    digest_file(path)
    entries = {name: change(*entry) for name, entry in memory(home).items()}
    (home / "digests.json").write_text(json.dumps(entries))
    assert digest_file(path) == expected(b"weights")
    assert len(read) == 2


def test_a_home_that_can_not_be_written(write, read, home, monkeypatch, caplog):
    path = write(b"weights")
    home.write_bytes(b"a file")
    with caplog.at_level(logging.DEBUG, "embstore"):
        assert digest_file(path) == digest_file(path) == expected(b"weights")
    assert len(read) == 2
    assert "not remembered" in caplog.text
    home.unlink()

    def refused(source, target):
        raise PermissionError(1, "refused")

    monkeypatch.setattr(os, "replace", refused)
    assert digest_file(path) == expected(b"weights")
    assert list(home.iterdir()) == []  # nothing is left behind


def test_where_digests_are_remembered(write, tmp_path, monkeypatch):
    path = write(b"weights")
    monkeypatch.delenv("EMBSTORE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    digest_file(path)
    assert (tmp_path / "xdg" / "embstore" / "digests.json").exists()
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        digest_file(path)
    assert (tmp_path / "user" / ".cache" / "embstore" / "digests.json").exists()
    assert not Path("relative").exists()


def test_only_the_newest_digests_are_kept(write, home, monkeypatch):
    monkeypatch.setattr(weights, "_REMEMBERED", 3)
    for i in range(5):
        digest_file(write(b"%d" % i, f"{i}"))
    digest_file(write(b"22", "2", LONG_AGO + 1))
    assert [Path(path).name for path in memory(home)] == ["3", "4", "2"]


def test_names_that_are_not_unicode(tmp_path, home, read):
    path = tmp_path / os.fsdecode(b"w\xff")
    try:
        path.write_bytes(b"weights")
    except OSError:
        pytest.skip("the file system takes Unicode names alone")
    os.utime(path, ns=(LONG_AGO, LONG_AGO))
    digest_file(path)
    assert digest_file(path) == expected(b"weights")
    assert len(read) == 1
    assert len(joined(digest_files(tmp_path, [path.name]))) == 32


def test_processes_at_once_leave_a_whole_memory(write, home, tmp_path):
    for i in range(40):
        write(b"%d" % i, f"{i}")
    program = (
        "import sys; from pathlib import Path\n"
        "from embstore._engine.io import stamps; from embstore.encoders import weights\n"
        "weights._LARGE = stamps._SETTLED_NS = 0\n"
        "for i in range(40): print(weights.digest_file(Path(sys.argv[1]) / str(i)))"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    while any(process.poll() is None for process in started):
        with contextlib.suppress(FileNotFoundError):
            assert len(memory(home)) >= 1
    assert [process.communicate()[0].split() for process in started] == [[expected(b"%d" % i) for i in range(40)]] * 2
    # Each process added its last digest to the entries that it had read: all entries are right, some may be missing.
    found = {Path(path).name: entry[4] for path, entry in memory(home).items()}
    assert found.items() <= {f"{i}": expected(b"%d" % i) for i in range(40)}.items()
    assert "39" in found
    assert [path.name for path in home.iterdir()] == ["digests.json"]

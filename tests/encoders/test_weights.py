"""Digests of weights: remembered only where nothing can have changed, and never trusted beyond that."""

import contextlib
import json
import logging
import os
import subprocess
import sys
import time
from hashlib import blake2b, file_digest
from pathlib import Path

import numpy as np
import pytest

from embstore import errors
from embstore.encoders import weights
from embstore.encoders.weights import digest_file, digest_files, digest_module, stamps

try:
    import torch
except ImportError:
    torch = None

with_torch = pytest.mark.skipif(torch is None, reason="needs embstore[torch]")

LONG_AGO = 1_700_000_000 * 10**9 + 123_456_789


def expected(data):
    return blake2b(data, digest_size=16).hexdigest()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Remember digests here, and begin with an empty memory."""
    home = tmp_path / "home"
    monkeypatch.setenv("EMBSTORE_HOME", str(home))
    monkeypatch.setattr(weights, "_known", (None, {}))
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


def forget_what_was_read(monkeypatch):
    """Have the next digest read the memory, as another process would."""
    monkeypatch.setattr(weights, "_known", (None, {}))


# -- one file ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 2**20, 2**20 + 1, 3 * 2**20])
def test_the_digest_is_that_of_the_bytes(write, rng, size):
    data = rng.bytes(size)
    path = write(data)
    assert digest_file(path) == digest_file(str(path)) == expected(data)
    assert len(digest_file(path)) == 32


def test_a_file_is_read_once(write, read, home, monkeypatch):
    path = write(b"weights")
    assert [digest_file(path) for _ in range(3)] == [expected(b"weights")] * 3
    forget_what_was_read(monkeypatch)
    assert digest_file(path) == expected(b"weights")
    assert read == ["model.safetensors"]
    assert memory(home) == {str(path): [7, LONG_AGO, path.stat().st_ino, expected(b"weights")]}


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


def test_another_file_of_the_same_size_and_time_is_read(write, read, tmp_path):
    path = write(b"weights")
    assert digest_file(path) == expected(b"weights")
    os.replace(write(b"WEIGHTS", "new"), path)
    assert path.stat().st_mtime_ns == LONG_AGO
    assert digest_file(path) == expected(b"WEIGHTS")
    assert len(read) == 2


@pytest.mark.parametrize("seconds", [0, 1.5, -3600])
def test_a_file_changed_just_now_is_not_remembered(write, read, home, seconds):
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
    both = digest_files(tmp_path, ["a.safetensors", "b.safetensors"])
    assert both == digest_files(tmp_path, ("b.safetensors", "a.safetensors", "a.safetensors"))
    assert len(both) == 32
    one = digest_files(tmp_path, ["a.safetensors"])
    assert one not in (both, digest_file(tmp_path / "a.safetensors"))
    write(b"one", "c.safetensors")
    assert digest_files(tmp_path, ["c.safetensors"]) != one
    write(b"two", "a.safetensors", LONG_AGO + 1)
    write(b"one", "b.safetensors", LONG_AGO + 1)
    assert digest_files(tmp_path, ["a.safetensors", "b.safetensors"]) != both


def test_files_that_are_not_there(write, tmp_path):
    write(b"one", "a")
    for ask in (digest_files, stamps):
        with pytest.raises(errors.ModelFilesError) as caught:
            ask(tmp_path, ["a", "1_Pooling/config.json"])
        assert (caught.value.path, caught.value.missing) == (tmp_path, "1_Pooling/config.json")


def test_stamps_tell_that_a_file_changed(write, tmp_path):
    write(b"one", "a")
    write(b"two", "b")
    before = stamps(tmp_path, ["b", "a"])
    assert before == (("a", 3, LONG_AGO), ("b", 3, LONG_AGO)) == stamps(tmp_path, ["a", "b"])
    write(b"TWO", "b", LONG_AGO + 1)
    assert stamps(tmp_path, ["a", "b"]) != before


# -- the memory -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"path": 3}', b"[" * 100_000, b'{"a": [1, 2, 3, "x"]}'],
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
        lambda size, mtime, inode, digest: [size, mtime, inode + 1, digest],
        lambda size, mtime, *rest: [size, float(mtime), *rest],
        lambda *entry: [*entry[:3], entry[3][:-1]],
        lambda *entry: [*entry[:3], entry[3].upper() + "g"],
        lambda *entry: [*entry[:3], None],
        lambda *entry: [*entry[:3]],
        lambda *entry: entry[3],
    ],
)
def test_an_entry_that_is_not_this_files_is_not_used(write, read, home, monkeypatch, change):
    path = write(b"weights")
    digest_file(path)
    entries = {name: change(*entry) for name, entry in memory(home).items()}
    (home / "digests.json").write_text(json.dumps(entries))
    forget_what_was_read(monkeypatch)
    assert digest_file(path) == expected(b"weights")
    assert len(read) == 2


def test_the_memory_is_read_once(write, monkeypatch):
    paths = [write(b"%d" % i, f"{i}") for i in range(3)]
    for path in paths:
        digest_file(path)
    parsed = []
    parse = weights._parsed
    monkeypatch.setattr(weights, "_parsed", lambda value: parsed.append(len(value)) or parse(value))
    forget_what_was_read(monkeypatch)
    for path in paths * 3:
        digest_file(path)
    assert parsed == [3]


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


def test_names_that_are_not_unicode(tmp_path, home, read, monkeypatch):
    path = tmp_path / os.fsdecode(b"w\xff")
    try:
        path.write_bytes(b"weights")
    except OSError:
        pytest.skip("the file system takes Unicode names alone")
    os.utime(path, ns=(LONG_AGO, LONG_AGO))
    digest_file(path)
    forget_what_was_read(monkeypatch)
    assert digest_file(path) == expected(b"weights")
    assert len(read) == 1
    assert len(digest_files(tmp_path, [path.name])) == 32


def test_processes_at_once_leave_a_whole_memory(write, home, tmp_path):
    for i in range(40):
        write(b"%d" % i, f"{i}")
    program = (
        "import sys; from pathlib import Path; from embstore.encoders.weights import digest_file\n"
        "for i in range(40): print(digest_file(Path(sys.argv[1]) / str(i)))"
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
    found = {Path(path).name: entry[3] for path, entry in memory(home).items()}
    assert found.items() <= {f"{i}": expected(b"%d" % i) for i in range(40)}.items()
    assert "39" in found
    assert [path.name for path in home.iterdir()] == ["digests.json"]


# -- modules ----------------------------------------------------------------------------------


def net(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))


@with_torch
def test_modules_of_equal_state_have_one_digest():
    assert digest_module(net()) == digest_module(net())
    assert len(digest_module(net())) == 32
    assert digest_module(net()) != digest_module(net(1))
    module = torch.nn.Module()
    module.register_buffer("x", torch.tensor([float("nan")]))
    assert digest_module(module) == digest_module(module)  # by its bits: NaN is unequal to itself


@with_torch
@pytest.mark.parametrize("name", ["0.weight", "0.bias", "1.running_mean", "1.num_batches_tracked", "2.weight"])
def test_one_changed_value_is_another_digest(name):
    module = net()
    before = digest_module(module)
    value = module.state_dict()[name].view(-1)
    value[-1] = value[-1] + 1
    assert digest_module(module) != before


@with_torch
def test_names_shapes_and_dtypes_count():
    zeros = torch.zeros(4)
    digests = set()
    for name, value in [
        ("a", zeros),
        ("b", zeros),
        ("a", zeros.view(2, 2)),
        ("a", zeros.view(4, 1)),
        ("a", zeros.to(torch.int32)),
        ("a", torch.zeros(0)),
        ("a", torch.zeros(0, 3)),
        ("a", torch.tensor(0.0)),
        ("a", -zeros),
    ]:
        module = torch.nn.Module()
        module.register_buffer(name, value)
        digests.add(digest_module(module))
    assert len(digests) == 9


@with_torch
@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int64", "float16", "bfloat16", "float32", "float64", "complex64", "float8_e4m3fn"]
)
def test_every_dtype_is_digested_by_its_bits(dtype):
    bits = torch.arange(64, dtype=torch.uint8)
    values = (bits % 2) if dtype == "bool" else bits
    module = torch.nn.Module()
    module.register_buffer("x", values.view(getattr(torch, dtype)))
    before = digest_module(module)
    other = values.clone()
    other[0] ^= 1
    module.x = other.view(getattr(torch, dtype))
    assert digest_module(module) != before


@with_torch
def test_the_layout_in_memory_does_not_count():
    values = torch.arange(12.0).reshape(3, 4)
    digests = set()
    for same in (values, values.t().contiguous().t(), torch.cat([values, values])[3:], values[:, :]):
        module = torch.nn.Module()
        module.weight = torch.nn.Parameter(same)
        digests.add(digest_module(module))
    assert len(digests) == 1
    conjugate = torch.nn.Module()
    conjugate.register_buffer("x", torch.tensor([1 + 2j]).conj())
    plain = torch.nn.Module()
    plain.register_buffer("x", torch.tensor([1 - 2j]))
    assert digest_module(conjugate) == digest_module(plain)


@with_torch
def test_tied_weights_and_modes_do_not_count():
    tied, untied = net(), net()
    tied.add_module("3", tied[0])
    untied.add_module("3", torch.nn.Linear(3, 4))
    untied[3].load_state_dict(untied[0].state_dict())
    assert digest_module(tied) == digest_module(untied)
    assert digest_module(net().eval().requires_grad_(False)) == digest_module(net())
    with torch.inference_mode():
        assert digest_module(net()) == digest_module(net())


@with_torch
def test_state_that_is_not_plain_tensors_is_refused():
    class Extra(torch.nn.Module):
        def get_extra_state(self):
            return {"step": 3}

    sparse = torch.nn.Module()
    sparse.register_buffer("x", torch.eye(3).to_sparse())
    for module, words in [
        (torch.nn.Linear(2, 2, device="meta"), "weight|bias"),
        (Extra(), "_extra_state.*dict"),
        (sparse, "'x'.*sparse"),
    ]:
        with pytest.raises(TypeError, match=words):
            digest_module(module)


@with_torch
def test_a_saved_module_has_the_digest_of_the_one_in_memory(tmp_path):
    module = net()
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    other = net(1)
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert digest_module(other) == digest_module(module)
    array = next(other.parameters()).detach().numpy()
    array[0, 0] = np.nextafter(array[0, 0], np.float32(9))
    assert digest_module(other) != digest_module(module)

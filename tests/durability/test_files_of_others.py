"""Files and folders of others in a store's folder stay, after each change by a writer."""

import errno
import itertools
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

import embstore
from embstore.cache.prune import remove_store
from embstore.errors import CompactionRefusedError, StoreExistsError
from tests._helpers.crash import killed_at, leftovers
from tests._helpers.kinds import base, key, put
from tests._helpers.mounts import bound, overlaid


def _zarr_array(path):
    zarr.create_array(path, data=np.arange(10.0))


def _link(path):
    path.symlink_to("zarr.json")


def _deep(path):
    (path / "a" / "b").mkdir(parents=True)
    (path / "a" / "b" / "file").write_text("kept")
    (path / "a" / "link").symlink_to("b")
    (path / "a").chmod(0o750)


def _folder_with(name):
    def make(path):
        path.mkdir()
        (path / name).write_text("kept")

    return make


def _file(path):
    path.write_text("kept")


OTHERS = {
    "README.md": _file,
    ".DS_Store": _file,
    "umap": _zarr_array,
    "notes": _deep,
    "to the record": _link,
    "pipe": os.mkfifo,
    "empty - copy": Path.mkdir,
    "2024": Path.mkdir,
    ".trash": Path.mkdir,
    "sources": _folder_with("c.txt"),
    "more sources": _folder_with("c.0.bak"),
    "letters": _folder_with("c.x"),
    "embedding/README.md": _file,
    "embedding/c.9.0.bak": _file,
    "embedding/c.9": _file,
    "embedding/c.09.0": _file,
    "score/notes": _deep,
}
"""Entries that are not embstore's, by their paths in the folder of a store."""

CHANGES = {
    "append": lambda store: put(store, [500], if_exists="replace"),
    "erase": lambda store: store.erase([next(iter(store))]),
    "compact": lambda store: store.compact(),
    "set_column": lambda store: store.set_column("other", list(store), 3),
    "replace a column": lambda store: store.set_column("score", list(store), 3),
    "add_field": lambda store: store.add_field(
        f"more{len(store.fields)}", list(store), np.ones((len(store), 2), np.float32)
    ),
}


def seen(path):
    """Return kind, mode, and content or target of each entry of others, with all that is below it."""
    found = {}
    for name in OTHERS:
        top = path / name
        for entry in (top, *top.rglob("*")):
            content = os.readlink(entry) if entry.is_symlink() else entry.is_file() and entry.read_bytes()
            found[entry.relative_to(path)] = (entry.lstat().st_mode, content)
    return found


@pytest.fixture
def others(path):
    base(path, "raw", deleted=True)
    for name, make in OTHERS.items():
        make(path / name)
    return seen(path)


@pytest.mark.parametrize("change", CHANGES)
def test_they_stay(path, others, change):
    for _ in range(2):  # the second change begins with a recovery
        with embstore.open(path, "r+") as store:
            CHANGES[change](store)
        assert seen(path) == others
    assert embstore.verify(path).ok


def test_they_stay_when_a_compaction_is_killed_at_any_step(path, others):
    kept = path.with_name("kept.zarr")
    path.rename(kept)
    for step in itertools.count(0, 7):
        shutil.copytree(kept, path, symlinks=True, copy_function=lambda a, b: os.link(a, b, follow_symlinks=False))
        killed = killed_at(step, path, lambda store: store.compact())
        assert seen(path) == others, step
        put(embstore.open(path, "r+"), [500])
        assert seen(path) == others, step
        assert leftovers(path) == []
        shutil.rmtree(path)
        if not killed:
            break
    assert step > 60


def test_a_compaction_whose_array_would_take_their_name_is_refused(path):
    """The column's array is called ``score.v2``, and would be called ``score`` again."""
    base(path, "raw")
    with embstore.open(path, "r+") as store:
        store.set_column("score", list(store), 4)
        (path / "score").mkdir()
        (path / "score" / "file").write_text("kept")
        with pytest.raises(StoreExistsError) as caught:
            store.compact()
        assert caught.value.path == path / "score"
        assert leftovers(path) == []
        put(store, [500])
    assert (path / "score" / "file").read_text() == "kept"
    assert embstore.verify(path).ok


# -- where folders can't be exchanged -------------------------------------------------------------


def test_an_overlay(tmp_path):
    """A store of a container's image: its folder is in a lower layer, and can't be renamed."""
    (tmp_path / "lower").mkdir()
    base(tmp_path / "lower" / "store.zarr", "raw", deleted=True)
    with overlaid(tmp_path / "lower", tmp_path) as top:
        path = top / "store.zarr"
        with embstore.open(path, "r+") as store:
            put(store, [500])
            store.erase([key(1)])
            store.set_column("score", list(store), 3)
            before = list(store)
            with pytest.raises(CompactionRefusedError) as caught:
                store.compact()
            assert (caught.value.path, caught.value.reason) == (path, os.strerror(errno.EXDEV))
            assert list(store) == before
            put(store, [501])
        assert leftovers(path) == []
        assert embstore.verify(path).ok
        embstore.merge(top / "copy.zarr", path)  # as the error says
        assert list(embstore.open(top / "copy.zarr")) == [*before, key(501)]
        remove_store(path)
        assert not path.exists()


def test_a_mount_point(tmp_path):
    base(tmp_path / "source.zarr", "raw", deleted=True)
    with bound(tmp_path / "source.zarr", tmp_path / "store.zarr") as path, embstore.open(path, "r+") as store:
        before = list(store)
        with pytest.raises(CompactionRefusedError, match="nothing was changed"):
            store.compact()
        assert list(store) == before
        assert leftovers(path) == []

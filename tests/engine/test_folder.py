"""Folders reach what is directly in them, and nothing else: names may come from a forged record."""

import inspect

import fsspec
import pytest

from embstore._engine.io.durable import WriteBatch, replace_file
from embstore._engine.io.folder import Folder
from embstore._engine.io.remote import RemoteFolder
from embstore.errors import CorruptStoreError

NAMES = ["", ".", "..", "/", "../victim", "../victim/file", "inner/file", "./file", "file/", "file/.", "fi\0le"]

READS = {
    "child": lambda folder, name: folder.child(name),
    "read": lambda folder, name: folder.read(name, most=100),
    "read_marked": lambda folder, name: folder.read_marked(name, lambda path, data: data, most=100),
    "contents": lambda folder, name: list(folder.contents(["file", name], lambda path, data: data, most=100)),
    "signature": lambda folder, name: folder.signature(name),
}
WRITES = {
    "opened": lambda folder, name: folder.opened(name),
    "make_child": lambda folder, name: folder.make_child(name),
    "remove": lambda folder, name: folder.remove(name),
    "remove first": lambda folder, name: folder.remove("inner", first=name),
    "link_from": lambda folder, name: folder.link_from(folder.child("inner"), name),
    "replace_file": lambda folder, name: replace_file(folder, name, [b"other"]),
    "write": lambda folder, name: WriteBatch().write(folder, name, [b"other"]),
}


def test_every_method_that_takes_a_name_is_tried():
    methods = inspect.getmembers(Folder, inspect.isfunction)
    taking = {name for name, method in methods if {"name", "names"} & inspect.signature(method).parameters.keys()}
    assert taking <= (READS | WRITES).keys()


@pytest.fixture
def place(tmp_path):
    """A folder with a file and a folder in it, and another folder beside it."""
    for folder in ("store", "store/inner", "victim"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_text("kept")
    return tmp_path


def all_files(place):
    return {path: path.is_file() and path.read_text() for path in place.rglob("*")}


@pytest.mark.parametrize("name", [*NAMES, "absolute"])
@pytest.mark.parametrize("operation", [*READS, *WRITES])
def test_names_that_lead_elsewhere_are_refused(place, operation, name):
    name = str(place / "victim") if name == "absolute" else name
    before, folder = all_files(place), Folder.open(place / "store")
    with pytest.raises(CorruptStoreError, match="expected the name of a file or folder") as caught:
        (READS | WRITES)[operation](folder, name)
    assert caught.value.path in (place / "store", place / "store/inner")
    assert all_files(place) == before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("operation", READS)
def test_names_that_lead_elsewhere_are_refused_at_a_url(operation, name):
    files = fsspec.filesystem("memory")
    files.pipe({"/store/file": b"kept", "/store/inner/file": b"kept", "/victim/file": b"kept"})
    with pytest.raises(CorruptStoreError, match="expected the name of a file or folder"):
        READS[operation](RemoteFolder.open("memory://store", max_signed_bytes=100), name)


def test_odd_names_in_a_folder_are_fine(place):
    folder = Folder.open(place / "store")
    for name in ("...", "..file", "a b", "é", "file.", "\\"):
        replace_file(folder, name, [b"data"])
        assert folder.read(name, most=100) == b"data"
        folder.remove(name)
    assert sorted(folder.names()) == ["file", "inner"]

"""File systems where a commit is less safe: they are refused, or a warning names them."""

import os

import pytest

import embstore
from embstore._engine.io import filesystem
from embstore.errors import NetworkFileSystemError
from tests._helpers.caches import warnings
from tests._helpers.mounts import disk_of

TABLES = {
    "ext4 with writeback": ("ext4 /dev/sda1 rw,data=writeback", True),
    "ext3 with writeback": ("ext3 /dev/sda1 rw,errors=continue,data=writeback,barrier", True),
    "ext4": ("ext4 /dev/sda1 rw,errors=remount-ro", False),
    "ext4, ordered": ("ext4 /dev/sda1 rw,data=ordered", False),
    "another option": ("xfs /dev/sda1 rw,nodata=writeback", False),
    "another device": (None, False),
    "without a source": ("ext4 rw,data=writeback", True),
}


@pytest.fixture(autouse=True)
def nothing_was_warned_of(monkeypatch):
    monkeypatch.setattr(filesystem, "_warned", set())


@pytest.mark.parametrize("table", TABLES)
def test_the_option_in_the_mount_table(path, monkeypatch, caplog, table):
    entry, warned = TABLES[table]
    device = path.parent.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}" if entry else "999:1"
    mounts = path.with_name("mountinfo")
    entry = entry or "ext4 /dev/x rw"
    mounts.write_text(f"20 1 0:1 / /dev rw - devtmpfs udev rw\n29 1 {number} / /x rw shared:1 - {entry}\n")
    monkeypatch.setattr(filesystem, "_MOUNTS", mounts)
    for _ in range(2):
        embstore.open(path, "a", config={}).close()
    found = [text for text in warnings(caplog) if "data=writeback" in text]
    assert len(found) == warned
    assert all(str(path.parent) in text for text in found)


def test_an_ext4_with_writeback(tmp_path, caplog):
    with disk_of(tmp_path / "image", tmp_path / "disk", nbytes=32 * 2**20, options="loop,data=writeback") as top:
        embstore.open(top / "new" / "folder" / "store.zarr", "a", config={}).close()
        assert len([text for text in warnings(caplog) if "data=writeback" in text]) == 1
        embstore.open(top / "new" / "folder" / "store.zarr").close()  # a reader loses nothing
    assert len(warnings(caplog)) == 1


def test_a_network_file_system_above_folders_that_are_not_made_yet(tmp_path, monkeypatch):
    monkeypatch.setattr(filesystem, "filesystem_type", lambda path: "nfs4" if path.exists() else "")
    with pytest.raises(NetworkFileSystemError) as caught:
        embstore.open(tmp_path / "a" / "b" / "store.zarr", "a", config={})
    assert caught.value.path == tmp_path
    assert list(tmp_path.iterdir()) == []

"""Stamps: a file of the same size and mtime with other content is found, and no two machines restamp for ever."""

import os
import platform
import shutil
from types import SimpleNamespace

import pytest

import embstore
from embstore._engine.io import stamps
from embstore.sources import Folder
from tests.pipeline.test_embed import OLD, Numbers, check, counts, touch

CONTENTS = {"a/f0:a": 10, "a/f1:a": 11, "b/f0:b": 20, "b/f1:b": 21}


def write(root, contents):
    for key, content in contents.items():
        path = root / f"{key.partition(':')[0]}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(content))
        touch(path)


def run(root, log, cache, **options):
    return embstore.embed(Folder(root, name="x"), Numbers(log), cache, **options)


# -- other content of the same size and mtime ----------------------------------------------------


def swap(one, other):
    one.rename(one.with_name("between"))
    other.rename(one)
    one.with_name("between").rename(other)


def two_files_swapped(root):
    swap(root / "a/f0.txt", root / "a/f1.txt")
    return {"a/f0:a": 11, "a/f1:a": 10}


def two_files_of_two_folders_swapped(root):
    swap(root / "a/f0.txt", root / "b/f1.txt")
    return {"a/f0:a": 21, "b/f1:b": 10}


def two_folders_swapped(root):
    swap(root / "a", root / "b")
    return {"a/f0:a": 20, "a/f1:a": 21, "b/f0:b": 10, "b/f1:b": 11}


def rewritten_with_its_mtime_put_back(root):
    write(root, {"a/f1:a": 99})
    return {"a/f1:a": 99}


def replaced_by_a_copy_with_its_times(root):
    (root / "a/f1.txt").unlink()
    shutil.copy2(root / "b/f0.txt", root / "a/f1.txt")
    return {"a/f1:a": 20}


def replaced_by_a_link(root):
    (root / "a/f1.txt").unlink()
    os.link(root / "b/f0.txt", root / "a/f1.txt")
    return {"a/f1:a": 20}


def replaced_by_a_symbolic_link(root):
    (root / "a/f1.txt").unlink()
    (root / "a/f1.txt").symlink_to("../b/f0.txt")
    return {"a/f1:a": 20}


@pytest.mark.parametrize(
    "change",
    [
        two_files_swapped,
        two_files_of_two_folders_swapped,
        two_folders_swapped,
        rewritten_with_its_mtime_put_back,
        replaced_by_a_copy_with_its_times,
        replaced_by_a_link,
        replaced_by_a_symbolic_link,
    ],
)
def test_other_content_of_the_same_size_and_mtime_is_stale(cache, log, root, reads, change):
    write(root, CONTENTS)
    run(root, log, cache)
    changed = change(root)
    assert {path.stat().st_mtime_ns for path in root.rglob("*.txt")} == {OLD}
    result = run(root, log, cache)
    assert counts(result) == (4, 4 - len(changed), len(changed), len(changed), 0, 0)
    check(result.path, {**CONTENTS, **changed})
    reads()
    assert counts(run(root, log, cache)) == (4, 4, 0, 0, 0, 0)
    assert reads() == []


def test_a_file_whose_mode_changed_is_read_once(cache, log, root, reads):
    write(root, CONTENTS)
    run(root, log, cache)
    (root / "a/f1.txt").chmod(0o600)
    reads()
    assert run(root, log, cache).hits == 4
    assert reads() == ["f1"]
    assert run(root, log, cache).hits == 4
    assert reads() == []


# -- other origins -------------------------------------------------------------------------------


def test_another_machine_reads_no_file_again_though_its_ctimes_differ(cache, log, root, reads, monkeypatch):
    write(root, CONTENTS)
    commit = run(root, log, cache).store.snapshot.record.commit_id
    monkeypatch.setattr(platform, "node", lambda: "another")
    reads()
    for mode in (0o600, 0o640):
        for path in root.rglob("*.txt"):
            path.chmod(mode)
        result = run(root, log, cache)
        assert counts(result) == (4, 4, 0, 0, 0, 0)
        assert result.store.snapshot.record.commit_id == commit  # no stamp was written
    assert reads() == []


def copied(root):
    return shutil.copytree(root, root.with_name("copy"))


def reached_by_a_link_to_a_copy(root):
    root.with_name("link").symlink_to(copied(root))
    return root.with_name("link")


@pytest.mark.parametrize("place", [copied, reached_by_a_link_to_a_copy])
def test_two_folders_with_the_same_files_read_none_again(cache, log, root, reads, place):
    write(root, CONTENTS)
    run(root, log, cache)
    reads()
    other = place(root)
    commits = set()
    for source in (other, root, other, root):
        result = run(source, log, cache)
        assert counts(result) == (4, 4, 0, 0, 0, 0)
        commits.add(result.store.snapshot.record.commit_id)
    assert len(commits) == 1  # the other folder is noted once
    assert reads() == []


@pytest.mark.parametrize(("kind", "same"), [("fuse.sshfs", True), ("fuseblk", True), ("nfs4", False), ("", False)])
def test_inode_numbers_count_unless_the_file_system_makes_them_up(monkeypatch, kind, same):
    monkeypatch.setattr(stamps, "filesystem_type", lambda path: kind)
    stamps._place.cache_clear()
    found = [SimpleNamespace(st_size=1, st_mtime_ns=OLD, st_ctime_ns=OLD, st_dev=0, st_ino=inode) for inode in (1, 2)]
    one, other = (stamps.file_stamp("/data", status) for status in found)
    stamps._place.cache_clear()
    assert (one == other) is same
    assert stamps.place_of(one.identity) == stamps.place_of(other.identity)
    assert 0 <= one.identity < 2**63


# -- by content ----------------------------------------------------------------------------------


def test_comparing_by_content_reads_all_files(cache, log, root, reads, monkeypatch):
    """It finds what stamps miss: other content of the same size and mtime on another machine."""
    write(root, CONTENTS)
    run(root, log, cache)
    monkeypatch.setattr(platform, "node", lambda: "another")
    write(root, {"a/f1:a": 99})
    assert run(root, log, cache).stale == 0
    reads()
    assert counts(run(root, log, cache, compare="content")) == (4, 3, 1, 1, 0, 0)
    assert set(reads()) == {"f0", "f1"}
    check(cache.entries()[0].path, {**CONTENTS, "a/f1:a": 99})
    assert counts(run(root, log, cache, compare="content")) == (4, 4, 0, 0, 0, 0)
    assert len(reads()) == 4
    with pytest.raises(ValueError, match="expected compare to be one of 'stamp', 'content', found 'bytes'"):
        run(root, log, cache, compare="bytes")

"""A simulated power cut after every operation: what was not synced is dropped, cut short, or there."""

import contextlib
import shutil
from pathlib import Path

import numpy as np
import pytest

import embstore
from embstore._engine.io import steps
from tests._helpers import kinds
from tests._helpers.kinds import base, key, put, state


class File:
    def __init__(self):
        self.data = bytearray()
        self.synced = b""

    def surviving(self, how, rng):
        if how == "all":
            return bytes(self.data)
        if how == "dropped":
            return self.synced
        kept = int(rng.integers(len(self.synced), max(len(self.synced), len(self.data)) + 1))
        return self.synced + bytes(self.data[len(self.synced) : kept])


class Folder:
    """Entries as the process sees them, as they are on disk, and the changes in between, in order."""

    def __init__(self):
        self.entries = {}
        self.synced = {}
        self.pending = []

    def change(self, changes):
        self.pending.append(changes)
        _apply(self.entries, changes)

    def sync(self):
        self.synced = dict(self.entries)
        self.pending = []

    def surviving(self, how, rng):
        entries = dict(self.synced)
        for changes in self.pending:
            if how == "all" or (how == "some" and rng.random() < 0.5):
                _apply(entries, changes)
        return entries


def _apply(entries, changes):
    for name, node in changes.items():
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


class Disk:
    """The file system below `root`, fed with the operations that the engine makes."""

    def __init__(self, root):
        self.root = Path(root)
        self.top = self._load(self.root)

    def _load(self, path):
        if path.is_dir():
            folder = Folder()
            folder.entries = {child.name: self._load(child) for child in path.iterdir()}
            folder.sync()
            return folder
        file = File()
        file.data = bytearray(path.read_bytes())
        file.synced = bytes(file.data)
        return file

    def node(self, path):
        node = self.top
        for part in Path(path).relative_to(self.root).parts:
            node = node.entries[part]
        return node

    def do(self, operation, path, data):
        path = Path(path)
        if operation == "sync_folder":
            return self.node(path).sync()
        parent = self.node(path.parent)
        if operation == "create":
            parent.change({path.name: File()})
        elif operation == "write":
            position, content = data
            file = self.node(path)
            file.data.extend(bytes(max(0, position + len(content) - len(file.data))))
            file.data[position : position + len(content)] = content
        elif operation == "fsync":
            file = self.node(path)
            file.synced = bytes(file.data)
        elif operation == "truncate":
            del self.node(path).data[data:]
        elif operation == "link":
            parent.change({path.name: self.node(data)})
        elif operation == "rename":
            parent.change({path.name: parent.entries[data], data: None})
        elif operation == "mkdir":
            parent.change({path.name: Folder()})
        elif operation == "unlink":
            parent.change({path.name: None})
        elif operation == "rmtree":
            self._remove(parent, path.name)
        elif operation == "move":
            parent.change({Path(data).name: parent.entries[path.name], path.name: None})
        elif operation == "exchange":
            other = Path(data).name
            parent.change({other: parent.entries[path.name], path.name: parent.entries[other]})
        else:
            raise AssertionError(operation)
        return None

    def _remove(self, parent, name):
        node = parent.entries.get(name)
        if isinstance(node, Folder):
            for child in list(node.entries):
                self._remove(node, child)
        parent.change({name: None})

    def survive(self, target, entries, data, rng):
        """Lay out what a power cut leaves."""
        self._lay(self.top, target, entries, data, rng)

    def _lay(self, node, target, entries, data, rng):
        if isinstance(node, File):
            target.write_bytes(node.surviving(data, rng))
            return
        target.mkdir()
        for name, child in node.surviving(entries, rng).items():
            self._lay(child, target / name, entries, data, rng)


VARIANTS = [
    ("dropped", "dropped"),
    ("all", "dropped"),
    ("all", "cut"),
    ("some", "cut"),
    ("some", "dropped"),
    ("all", "all"),
]


@contextlib.contextmanager
def recording():
    """Give a list of the operations that the engine makes in the block."""
    log = []

    def hook(operation, where, data):
        log.append((operation, where, (data[0], bytes(data[1])) if operation == "write" else data))

    steps.step_hook = hook
    try:
        yield log
    finally:
        steps.step_hook = None


def record_operations(path, changes):
    """Run changes one after the other; return the operations, with each change's outcome where it was acknowledged."""
    with recording() as log, embstore.open(path, "r+") as store:
        for change in changes:
            change(store)
            log.append(("acknowledged", None, state(store)))
    return log


HISTORIES = {
    "append, replace, delete": [kinds.append, kinds.replace, kinds.delete],
    "erase": [kinds.delete, lambda store: store.erase([key(3), key(129)])],
    "compact": [kinds.replace, kinds.compact, kinds.append],
    "columns and fields": [kinds.set_column, kinds.set_column, kinds.add_field],
}


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("kind", ["raw", "ragged", "zstd", "bfloat16"])
def test_every_prefix_opens_to_a_whole_commit(tmp_path, kind, history):
    """In each variant for a raw store; in one of them, at each third operation, for the others."""
    work = tmp_path / "work"
    work.mkdir()
    path = work / "store.zarr"
    base(path, kind)
    disk = Disk(work)
    outcomes = [state(embstore.open(path))]
    log = record_operations(path, HISTORIES[history])
    outcomes += [data for operation, _, data in log if operation == "acknowledged"]
    rng = np.random.default_rng(0)
    acknowledged, seen = 0, set()
    for number, (operation, where, data) in enumerate([*log, ("end", None, None)]):
        allowed = outcomes[acknowledged : acknowledged + 2]
        variants = VARIANTS
        if kind != "raw":
            few = number % 3 == 0 or operation in ("acknowledged", "end")
            variants = [VARIANTS[number // 3 % len(VARIANTS)]] if few else []
        for variant, (entries, content) in enumerate(variants):
            target = tmp_path / "after"
            disk.survive(target, entries, content, rng)
            survivor = target / "store.zarr"
            found = state(embstore.open(survivor, check="all"))
            assert found in allowed, (number, operation, where, entries, content)
            seen.add(outcomes.index(found))
            if (number + variant) % 5 == 0:  # and the next writer needs no help
                with embstore.open(survivor, "r+") as store:
                    put(store, [1001], ["next:c"])
                report = embstore.verify(survivor)
                assert report.ok, str(report)
            shutil.rmtree(target)
        if operation == "acknowledged":
            acknowledged += 1
        elif operation != "end":
            disk.do(operation, where, data)
    assert seen == {outcomes.index(outcome) for outcome in outcomes}  # a compaction changes nothing that is seen


def test_the_simulation_finds_a_rename_without_a_sync(tmp_path, monkeypatch):
    """Were the files not synced before their rename, this test would notice."""
    work = tmp_path / "work"
    work.mkdir()
    path = work / "store.zarr"
    base(path, "raw")
    disk = Disk(work)
    log = [entry for entry in record_operations(path, [kinds.append]) if entry[0] != "fsync"]
    for operation, where, data in log[:-1]:
        disk.do(operation, where, data)
    disk.survive(tmp_path / "after", "all", "dropped", np.random.default_rng(0))
    with pytest.raises((embstore.errors.CorruptStoreError, embstore.errors.NotAStoreError)):
        embstore.open(tmp_path / "after" / "store.zarr")


@pytest.mark.parametrize("kind", ["raw", "ragged"])
def test_a_new_store_is_there_whole_or_not_at_all(tmp_path, kind):
    work = tmp_path / "work"
    work.mkdir()
    disk = Disk(work)
    with recording() as log:
        kinds.new(work / "store.zarr", kind).close()
    rng = np.random.default_rng(0)
    for operation, where, data in [*log, ("end", None, None)]:
        for entries, content in VARIANTS:
            target = tmp_path / "after"
            disk.survive(target, entries, content, rng)
            with embstore.open(target / "store.zarr", "a", config={"kind": kind}, **kinds.KINDS[kind]) as store:
                put(store, [1])
            assert embstore.verify(target / "store.zarr").ok
            shutil.rmtree(target)
        if operation != "end":
            disk.do(operation, where, data)

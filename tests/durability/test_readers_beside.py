"""Readers beside a writer that compacts, erases, merges or removes: right rows, or a named error that says so."""

import contextlib
import shutil
from importlib.util import find_spec

import numpy as np
import pytest

import embstore
from embstore._engine.io import folder
from embstore.cache.prune import remove_store
from embstore.errors import NotAStoreError, StoreChangedError, StoreReplacedError
from tests._helpers import kinds
from tests._helpers.kinds import key, number_of, put, rows_of

GONE = [3, 140, 299]
ROWS = 300  # in chunks of 128: two full ones, and a part of a third


def _rows(store, numbers, found):
    if found is not None:
        kinds.assert_rows(found, rows_of(store.fields["embedding"], numbers))


def _live(store):
    return [number_of(name) for name in store]


def _taken(store):
    numbers = [i for i in (0, 130, 298) if key(i) in store]
    _rows(store, numbers, store.fetch([key(i) for i in numbers], "embedding"))


def _tensor(store):
    found = store.tensor("embedding", dead="include").numpy()
    _rows(store, [0, 298], found[[0, 298]])


def _view(store):
    view = store.select()
    numbers = [number_of(name) for name in view.keys]
    _rows(store, numbers, view.to_numpy("embedding"))


def _nearest(store):
    found = store.select().nearest(np.ones(8, np.float32), k=5, field="embedding")
    assert found is not None


def _merged(store):
    dest = store.path.with_name("merged.zarr")
    embstore.merge(dest, store.path)
    assert len(embstore.open(dest)) >= ROWS - len(GONE)


CALLS = {
    "fetch": _taken,
    "take": lambda store: _rows(store, [0, 298], store.take([0, 298], "embedding")),
    "array": lambda store: _rows(store, [0, 298], store.array("embedding", dead="include")[[0, 298]]),
    "tensor": _tensor,
    "select": _view,
    "keys": lambda store: list(store),
    "find": lambda store: store.find([key(0), key(298), "other:x"]),
    "missing": lambda store: store.missing([key(0), "other:x"]),
    "classes": lambda store: store.select(classes="c1").to_numpy("embedding"),
    "column": lambda store: store.select().column("score"),
    "where": lambda store: store.select(where={"score": 7}).keys,
    "pandas": lambda store: store.select().to_pandas(["embedding"]),
    "xarray": lambda store: store.select().to_xarray(["embedding"]),
    "batches": lambda store: [batch.to_numpy("embedding") for batch in store.select().batches(100)],
    "nearest": _nearest,
    "export": lambda store: embstore.export_file(store.select(), store.path.with_name("out.npz")),
    "merge": _merged,
    "refresh": lambda store: (store.refresh(), _view(store)),
    "open": lambda store: _view(embstore.open(store.path, check="all")),
    "repr": repr,
    "verify": lambda store: embstore.verify(store.path),
}
LIBRARIES = {"tensor": "torch", "pandas": "pandas", "xarray": "xarray"}
CALLS = {name: call for name, call in CALLS.items() if find_spec(LIBRARIES.get(name, "numpy"))}


def _by_another(change):
    def event(path):
        with embstore.open(path, "r+") as store:
            change(store)

    return event


def _replaced(path):
    shutil.rmtree(path)
    with kinds.new(path, "raw", columns={"score": "int64"}) as store:
        put(store, range(ROWS))


EVENTS = {
    "compact": _by_another(lambda store: (store.delete([key(i) for i in GONE]), store.compact())),
    "compact twice": _by_another(lambda store: (store.compact(), put(store, [900]), store.compact())),
    "erase": _by_another(lambda store: store.erase([key(i) for i in GONE])),
    "delete": _by_another(lambda store: store.delete([key(i) for i in GONE])),
    "append": _by_another(lambda store: put(store, range(900, 1100))),
    "replace a column": _by_another(lambda store: store.set_column("score", list(store), 8)),
    "merge": lambda path: embstore.merge(path, path.with_name("part.zarr")),
    "remove": remove_store,
    "rmtree": shutil.rmtree,
    "replace": _replaced,
}
NAMED = (StoreChangedError, StoreReplacedError)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    for name, first, count in (("store.zarr", 0, ROWS), ("part.zarr", 2000, 200)):
        with kinds.new(folder / name, "raw", columns={"score": "int64"}) as store:
            put(store, range(first, first + count))
    return folder


@contextlib.contextmanager
def in_the_middle(monkeypatch, after, event):
    """Carry out an event once, before a file is opened by name for the time after next, or the like."""
    opened, left = folder.Folder.opened, [after]

    def opening(own, name):
        left[0] -= 1
        if left[0] == 0:
            event()
        return opened(own, name)

    monkeypatch.setattr(folder.Folder, "opened", opening)
    yield
    monkeypatch.undo()


@pytest.mark.parametrize(("check", "mapping"), [("touched", "auto"), ("tail", "never")])
@pytest.mark.parametrize("event", EVENTS)
def test_each_call_after_an_event(tmp_path, made, event, check, mapping):
    """The reader has used all of its columns before, or only the first chunk, or nothing."""
    for used in ("all", "a chunk", "nothing"):
        for name, call in CALLS.items():
            top = tmp_path / f"{name} {used}"
            shutil.copytree(made, top)
            store = embstore.open(top / "store.zarr", check=check, mapping=mapping)
            if used == "all":
                _view(store)
            if used != "nothing":
                for _ in range(2):  # the second batch maps the column
                    store.take([0, 1], "embedding")
            EVENTS[event](top / "store.zarr")
            gone = event in ("remove", "rmtree")
            allowed = (*NAMED, NotAStoreError) if gone else NAMED
            with contextlib.suppress(*allowed):
                call(store)
            shutil.rmtree(top)


@pytest.mark.parametrize(("check", "mapping"), [("tail", "auto"), ("touched", "never")])
@pytest.mark.parametrize("event", EVENTS)
def test_each_call_while_an_event_happens(tmp_path, monkeypatch, made, event, check, mapping):
    for after in (1, 4):
        for name, call in CALLS.items():
            top = tmp_path / f"{name} {after}"
            shutil.copytree(made, top)
            store = embstore.open(top / "store.zarr", check=check, mapping=mapping)
            gone = event in ("remove", "rmtree")
            with (
                in_the_middle(monkeypatch, after, lambda top=top: EVENTS[event](top / "store.zarr")),
                contextlib.suppress(*NAMED, *([NotAStoreError] if gone else [])),
            ):
                call(store)
            monkeypatch.undo()
            shutil.rmtree(top)


@pytest.mark.parametrize("read", ["take", "copy", "span"])
@pytest.mark.parametrize("mapping", ["auto", "never"])
@pytest.mark.parametrize("chunk", [0, 1])
def test_a_flipped_bit_in_a_full_chunk_is_found_when_it_is_touched(tmp_path, made, mapping, read, chunk):
    """Of several chunks. `take` and `copy` have the same guard."""
    path = tmp_path / "store.zarr"
    shutil.copytree(made / "store.zarr", path)
    file = path / "embedding" / f"c.{chunk}.0"
    data = bytearray(file.read_bytes())
    data[1000] ^= 1
    file.write_bytes(data)
    snapshot = embstore.open(path, check="touched", mapping=mapping).snapshot
    start, stop = chunk * 128 + 3, chunk * 128 + 9
    arguments = (np.arange(start, stop),) if read == "take" else (start, stop)
    with pytest.raises(embstore.errors.CorruptStoreError, match="checksum does not match"):
        getattr(snapshot, read)("embedding", *arguments)
    numbers = np.arange(2) + (8 if chunk else 136)
    arguments = (numbers,) if read == "take" else (int(numbers[0]), int(numbers[0]) + 2)
    found = getattr(snapshot, read)("embedding", *arguments)
    kinds.assert_rows(found, rows_of(snapshot.record.fields["embedding"], numbers))

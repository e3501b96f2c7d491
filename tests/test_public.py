"""Public names: each is imported when it is first used, and is what reprs and pickles say."""

import ast
import copy
import importlib
import inspect
import io
import pickle
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest

import embstore
import embstore_fl
from embstore import Config, Difference, FieldSpec, Key, Origin, Padded, Ragged, Sample
from embstore.exchange import Unreadable

LAZY = sorted(
    ".".join(file.parent.relative_to(Path(room.__file__).parents[1]).parts)
    for room in (embstore, embstore_fl)
    for file in Path(room.__file__).parent.rglob("__init__.py")
    if "= lazily(" in file.read_text()
)
HEAVY = {
    "zarr",
    "numcodecs",
    "torch",
    "transformers",
    "pandas",
    "xarray",
    "pyarrow",
    "fsspec",
    "obstore",
    "flwr",
    "datasets",
}


@pytest.mark.parametrize("package", LAZY)
def test_every_public_name_is_imported_when_it_is_first_used(package):
    if package.startswith("embstore_fl"):
        pytest.importorskip("torch")
    module = importlib.import_module(package)
    assert {*module.__all__} == {*dir(module)}
    for name in module.__all__:
        value = getattr(module, name)
        assert value is not None
        assert name == "__version__" or isinstance(value, dict) or value.__name__ in (name, f"{package}.{name}")
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = module.nonsense


@pytest.mark.parametrize("package", LAZY)
def test_type_checkers_find_names_where_they_are(package):
    """The imports that type checkers see are those that `lazily` makes."""
    module = importlib.import_module(package)
    block = next(node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.If))
    seen = {
        alias.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == {name: f"{package}.{home}" if home else package for name, home in vars(module)["_HOMES"].items()}


def test_importing_a_package_loads_no_heavy_library():
    assert {"embstore", "embstore.sources", "embstore_fl", "embstore_fl.a2v"} < set(LAZY)
    code = f"""
import sys
import embstore
assert "numpy" not in sys.modules
import {", ".join(LAZY)}, embstore.pipeline, embstore.errors, embstore_fl.errors, embstore_fl.metrics
print(sorted({HEAVY} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


PATH = Path("/data/a.zarr")
DIFFERENCE = Difference("a", 1, 2)


def read():
    return "text"


def aligned(store):
    view = store.select()
    return embstore.align(one=view, other=view, classes=["dog", "cat"])


MAKE = {
    "Aligned": aligned,
    "AppendResult": lambda _: embstore.AppendResult(appended=1, skipped=2, replaced=3),
    "Cache": lambda store: embstore.Cache(store.path.parent, network="allow"),
    "CacheEntry": lambda _: embstore.CacheEntry(PATH, Config(a=1), 3, 0.0),
    "CanaryReport": lambda _: embstore.CanaryReport(keys=("a:b",), differences={"f": 0.5}, tolerances={"f": 1.0}),
    "Config": lambda _: Config(a={"b": [1, None]}),
    "Difference": lambda _: next(iter(Config(a=1).diff({}))),
    "EmbedResult": lambda _: embstore.EmbedResult(
        path=PATH,
        config=Config(a=1),
        reason="miss",
        samples=2,
        hits=0,
        encoded=1,
        stale=0,
        failed=(embstore.EmbedResult._failure("a:b", "a.wav", "it is empty"),),
        rows=1,
        nbytes=8,
        seconds=0.5,
    ),
    "EmbeddingStore": lambda store: store,
    "EraseReceipt": lambda store: store.erase(["a:dog"]),
    "Explanation": lambda store: embstore.why(store.config, store.path.parent),
    "Origin": lambda _: Origin(kind="huggingface", builder="imdb", config="plain", split="test"),
    "FieldSpec": lambda _: FieldSpec(shape=(2, 3), dtype="float16", layer="pooler", ragged=True),
    "ImportResult": lambda _: embstore.ImportResult(
        path=PATH,
        rows=1,
        skipped=0,
        replaced=0,
        unreadable=(Unreadable("a", "no class"),),
        config=Config(a=1),
        seconds=0.5,
    ),
    "Key": lambda _: Key("a", "b"),
    "Lookup": lambda _: embstore.Lookup(hit=False, reason="miss", path=PATH, differences=(DIFFERENCE,)),
    "Padded": lambda _: Padded(np.ones((1, 2)), np.array([2])),
    "Ragged": lambda _: Ragged(np.ones((3, 2)), np.array([0, 1, 3])),
    "Problem": lambda _: embstore.Problem(PATH, "it is missing", np.arange(2)),
    "PullResult": lambda _: embstore.PullResult(path=PATH, rows=3, parts=1, fetched=1, nbytes=8, removed=0),
    "PushResult": lambda _: embstore.PushResult(path=PATH, appended=3, skipped=0, replaced=0, commits=1),
    "TidyResult": lambda _: embstore.TidyResult(objects=1, nbytes=8),
    "Report": lambda _: embstore.Report(PATH, 3, (), ("a:b",)),
    "SalvageReport": lambda _: embstore.SalvageReport(PATH, 3, np.arange(1), ("a:b",), ()),
    "StoreUse": lambda _: embstore.StoreUse(
        path=PATH, config=Config(a=1), rows=3, last_used=0.0, nbytes=8, usage=embstore.Usage(runs=1)
    ),
    "Usage": lambda _: embstore.Usage(runs=1, hits=2, seconds=0.5),
    "Sample": lambda _: Sample("a:b", read, "1"),
    "View": lambda store: store.select(classes=["dog"]),
}

PROTOCOLS = {"Encoder", "Source"}  # others implement them
CLASSES = sorted(name for name in embstore.__all__ if inspect.isclass(getattr(embstore, name)) if name not in PROTOCOLS)


@pytest.fixture
def store(tmp_path):
    with embstore.open(tmp_path / "a.zarr", "w-", config={"a": 1}) as store:
        store.append(["a:dog", "b:cat", "c:dog"], np.arange(6, dtype=np.float32).reshape(3, 2))
        yield store


class Named(pickle.Unpickler):
    """Unpickles, and keeps the names of all functions and classes that it looks up."""

    def __init__(self, data):
        super().__init__(io.BytesIO(data))
        self.names = set()

    def find_class(self, module, name):
        self.names.add(f"{module}.{name}")
        return super().find_class(module, name)


def facts(value):
    """Return what two equal objects have in common, also where arrays keep them from being compared."""
    if isinstance(value, embstore.View | embstore.EmbeddingStore):
        return value.select().keys if isinstance(value, embstore.EmbeddingStore) else (value.keys, value.to_numpy())
    if isinstance(value, embstore.Aligned):
        return value.on, value.fields, value.classes, value.left_out, [facts(view) for view in value.views.values()]
    if isinstance(value, embstore.Cache):
        return value.path, value.options
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return value


@pytest.mark.parametrize("name", CLASSES)
def test_repr_and_pickle_hold_public_names_alone(name, store):
    value = MAKE[name](store)
    public = getattr(embstore, name)
    assert type(value) is public
    # An explanation is for a person to read, in a notebook too.
    assert name == "Explanation" or re.match(rf"<?{name}\b", repr(value)), repr(value)
    assert not re.search(r"embstore\.\w+\.", repr(value))
    assert importlib.import_module(public.__module__).__dict__[name] is public  # where it is, it says
    data = pickle.dumps(value)
    reader = Named(data)
    again = reader.load()
    ours = {found for found in reader.names if found.startswith("embstore")}
    assert ours <= {"embstore._named"}, ours
    assert not re.search(rb"embstore\.(_\w+|\w+\.\w+)\b", data.replace(b"embstore._named", b""))
    for copied in (again, copy.copy(value)):
        assert type(copied) is public
        np.testing.assert_equal(facts(copied), facts(value))


class Mine(Sample):
    """A subclass of a user's, which is found where it is."""


def test_a_users_subclass_keeps_its_type():
    again = pickle.loads(pickle.dumps(Mine("a:b", read, "1")))
    assert type(again) is Mine
    assert again == Mine("a:b", read, "1")

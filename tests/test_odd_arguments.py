"""Arguments of another type are refused by name before anything runs, at entry points other than a store's."""

import numpy as np
import pytest

import embstore
from embstore import analysis
from embstore.encoders import FunctionEncoder, ModuleEncoder
from embstore.sources import Folder, Items

SOURCE = Items({"a": "x", "b": "y"}, name="d")


def ones(items):
    return np.ones((len(items), 3), np.float32)


def made(**more):
    return FunctionEncoder(ones, **{"config": {"v": 1}, **more})


def run(path, **more):
    return embstore.embed(SOURCE, made(), path / "cache", **more)


def opened(path):
    return run(path).store


def module(**more):
    torch = pytest.importorskip("torch")
    return ModuleEncoder(more.pop("module", torch.nn.Linear(2, 2)), **{"collate": torch.stack, **more})


CALLS = {  # what the message names, and a call with the folder and the odd value
    "Items": ("a mapping of keys", lambda path, x: Items(x, name="d")),
    "Folder suffixes": ("suffixes", lambda path, x: Folder(path, name="d", suffixes=x)),
    "Folder exclude": ("templates", lambda path, x: Folder(path, name="d", exclude=x)),
    "Folder pattern": ("a pattern", lambda path, x: Folder(path, name="d", pattern=x)),
    "Folder file_id": ("file_id", lambda path, x: Folder(path, name="d", file_id=x)),
    "FunctionEncoder": ("function", lambda path, x: FunctionEncoder(x, config={"v": 1})),
    "config": ("config", lambda path, x: made(config=x)),
    "fields": ("fields", lambda path, x: made(fields=x)),
    "decode": ("decode", lambda path, x: made(decode=x)),
    "length": ("length", lambda path, x: made(length=x)),
    "provenance": ("provenance", lambda path, x: made(provenance=x)),
    "ModuleEncoder": ("torch.nn.Module", lambda path, x: module(module=x)),
    "collate": ("collate", lambda path, x: module(collate=x)),
    "forward": ("forward", lambda path, x: module(forward=x)),
    "config of a module": ("config", lambda path, x: module(config=x)),
    "batch_size": ("batch_size", lambda path, x: run(path, batch_size=x)),
    "workers": ("workers", lambda path, x: run(path, workers=x)),
    "canaries": ("canaries", lambda path, x: run(path, canaries=x)),
    "shard": ("shard", lambda path, x: run(path, shard=x)),
    "vanished": ("vanished", lambda path, x: run(path, vanished=x)),
    "compare": ("compare", lambda path, x: run(path, compare=x)),
    "columns": ("columns", lambda path, x: run(path, columns=x)),
    "columns returned": ("the values", lambda path, x: run(path, columns=lambda sample: x)),
    "check": ("a store", lambda path, x: embstore.check(x, made(), SOURCE)),
    "check n": ("n", lambda path, x: embstore.check(opened(path), made(), SOURCE, n=x)),
    "export": ("View", lambda path, x: embstore.export_file(x, path / "a.npz")),
    "export fields": ("fields", lambda path, x: embstore.export_file(opened(path), path / "a.npz", fields=x)),
    "import columns": ("columns", lambda path, x: embstore.import_file(path / "a.npz", path / "s", columns=x)),
    "encoder": ("a list of samples", lambda path, x: made()(x)),
    "shape": ("a shape", lambda path, x: embstore.FieldSpec(shape=x)),
    "outliers": ("n", lambda path, x: analysis.outliers(opened(path), x)),
}


@pytest.mark.parametrize("odd", [1.5, object()], ids=["float", "object"])
@pytest.mark.parametrize("call", CALLS)
def test_an_odd_argument_is_named(tmp_path, call, odd):
    named, use = CALLS[call]
    with pytest.raises((TypeError, ValueError), match=rf"expected .*{named}") as caught:
        use(tmp_path, odd)
    assert "found" in str(caught.value)


@pytest.mark.parametrize("use", [embstore.open, embstore.Cache, embstore.verify])
def test_a_path_of_bytes_is_refused(use):
    with pytest.raises(TypeError, match=r"expected a path as text, found b'x'; use os.fsdecode"):
        use(b"x")


@pytest.mark.parametrize("length", ["x", None, [1]], ids=repr)
def test_a_length_that_is_no_number_names_the_sample(tmp_path, length):
    encoder = made(length=lambda item: length if item == "y" else 1)
    with pytest.raises(TypeError, match="expected a number as the length of an item, found") as caught:
        embstore.embed(SOURCE, encoder, tmp_path / "cache")
    assert any("the sample is b" in note for note in caught.value.__notes__)

"""Dictionaries of tensors in .pt files: what others wrote, what is hostile, and what embstore writes."""

import logging
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

import embstore
from embstore import FieldSpec, errors
from embstore.exchange import export_file, import_file
from tests.exchange.test_exchange import COLUMNS, RICH, N, key, refused, rich, same

torch = pytest.importorskip("torch")

CONFIG = {"model": "ast"}
LAST = "file_id:class"
X = torch.arange(12, dtype=torch.float32).reshape(4, 3)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "x.pt"


@pytest.fixture
def imported(tmp_path, file):
    """Save what a dictionary holds and import it."""

    def imported(found, *, save=None, **options):
        (save or torch.save)(found, file)
        return import_file(file, tmp_path / "dest.zarr", **{"config": CONFIG, "keys": LAST, **options})

    return imported


def reasons(result):
    return {one.key: one.reason for one in result.unreadable}


# -- what others wrote ------------------------------------------------------------------------


def test_keys_and_tensors(imported):
    result = imported({"a:dog": X[0], "b:cat": X[1].clone(), "dog:c.wav:dog": X[2], "d": X[3]}, class_name="owl")
    assert result.ok
    assert result.store.select().keys == ["a:dog", "b:cat", "dog:c.wav:dog", "d:owl"]
    np.testing.assert_array_equal(result.store.select().to_numpy(), X.numpy())
    assert result.store.fields == {"embedding": FieldSpec(shape=(3,))}


@pytest.mark.parametrize("name", ["embedding", "embeddings"])
@pytest.mark.parametrize("as_array", [False, True])
def test_entries(imported, name, as_array):
    entries = {
        f"v{i}": {name: X[i].numpy().copy() if as_array else X[i], "class_name": "ab"[i % 2], "split": "train", "n": i}
        for i in range(4)
    }
    result = imported(entries)
    assert result.ok
    assert result.store.select().keys == ["v0:a", "v1:b", "v2:a", "v3:b"]
    np.testing.assert_array_equal(result.store.select().to_numpy(), X.numpy())
    assert result.store.columns == {"split": "string", "n": "int64"}
    assert result.store.select().column("n").tolist() == [0, 1, 2, 3]


def test_tensors_and_entries_mixed(imported):
    found = {"a:x": X[0], "b:x": {"embedding": X[1]}, "y:c": {"embeddings": X[2].numpy(), "class_name": "y"}}
    result = imported({**found, "z:d": {"embedding": X[3], "class_name": "z"}})
    assert result.store.select().keys == ["a:x", "b:x", "c:y", "d:z"]
    np.testing.assert_array_equal(result.store.select().to_numpy(), X.numpy())


def test_metadata_becomes_the_config(imported, tmp_path):
    metadata = {
        "model": "ast",
        "rate": np.int64(16_000),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "size": torch.Size([1214, 768]),
        "mean": torch.tensor(0.5),
        "std": torch.tensor([0.5, 0.25]),
        7: (1, 2),
        "nested": {"a": {1: None}},
        "raw": b"ab",
        "nan": float("nan"),
        "weights": torch.zeros(1000),
        "big": 2**60,
        "tags": {"b", "a"},
    }
    result = imported({"embeddings": {"a:x": X[0]}, "metadata": metadata, "other": [1]}, config=None)
    assert result.config == {
        "model": "ast",
        "rate": 16_000,
        "dtype": "float16",
        "device": "cpu",
        "size": [1214, 768],
        "mean": 0.5,
        "std": [0.5, 0.25],
        "7": [1, 2],
        "nested": {"a": {"1": None}},
        "tags": ["a", "b"],
    }
    assert {one.key for one in result.left_out} == {"raw", "nan", "weights", "big", "other"}
    assert result.store.config == result.config


def test_metadata_of_another_kind_is_left_out(imported):
    found = {"embeddings": {"a:x": X[0]}, "metadata": [1], "other": None}
    assert [str(one) for one in imported(found).left_out] == [
        "metadata: expected a dictionary, found list",
        "other: expected nothing but 'embeddings' and 'metadata', found NoneType",
    ]


def test_without_metadata_a_config_is_asked_for(imported, tmp_path):
    for found in ({"a:x": X[0]}, {"embeddings": {"a:x": X[0]}}, {"embeddings": {"a:x": X[0]}, "metadata": {}}):
        with pytest.raises(TypeError, match="config="):
            imported(found, config=None)
    with pytest.raises(errors.ConfigMismatchError):
        imported({"embeddings": {"a:x": X[0]}, "metadata": {"model": "clip"}})
    assert not (tmp_path / "dest.zarr").exists()


@pytest.mark.parametrize("names", ["ids", "keys", "file_id"])
def test_a_matrix_and_the_names_of_its_rows(imported, names):
    """It became one row, called "embeddings"."""
    found = {
        names: ["a", "b", "c", "d"],
        "class_name": ["x", "y", "x", "y"],
        "embeddings": X.bfloat16(),
        "split": ("train", "test", "train", "test"),
        "n": [1, 2, 3, 4],
        "mixed": [1, "a", None, 2],
        "short": torch.zeros(3),
        "metadata": {"model": "ast"},
    }
    result = imported(found, config=None, keys=None)
    assert result.config == CONFIG
    assert result.store.select().keys == ["a:x", "b:y", "c:x", "d:y"]
    assert result.store.fields == {"embeddings": FieldSpec(shape=(3,), dtype="bfloat16")}
    assert torch.equal(result.store.select().to_torch(), X.bfloat16())
    assert result.store.select().column("split").tolist() == ["train", "test", "train", "test"]
    assert result.store.select().column("n").tolist() == [1, 2, 3, 4]
    assert {one.key for one in result.left_out} == {"mixed", "short"}


def test_names_of_rows_as_arrays(imported, tmp_path):
    found = {"embedding": X.numpy().copy(), "keys": np.array(["a:x", "b:y", "c:x", "d"])}
    assert imported(found).store.select().keys == ["a:x", "b:y", "c:x", "d"]
    result = import_with(tmp_path, {"features": X, "ids": torch.arange(4)}, class_name="dog")
    assert result.store.select().keys == ["0:dog", "1:dog", "2:dog", "3:dog"]
    with pytest.raises(errors.FileFormatError, match="State the order"):
        import_with(tmp_path, found, keys=None)


@pytest.mark.parametrize(
    "more", [{}, {"labels": [1, 2, 3, 4]}, {"ids": ["a", "b"]}, {"ids": [[1], [2], [3], [4]]}, {"b:c": X[0]}]
)
def test_a_matrix_without_the_names_of_its_rows_is_refused(imported, tmp_path, more):
    with pytest.raises(errors.FileFormatError, match=r"embeddings: float32 \(4, 3\).*Expected keys"):
        imported({"embeddings": X, **more})
    assert not (tmp_path / "dest.zarr").exists()


def test_keys_of_which_no_order_is_known(imported, tmp_path):
    for name in (r"C:\data\1.wav", "doi:10.1/x", "2020-01-01T10:30:00", "dog:v1"):
        with pytest.raises(errors.FileFormatError, match="State the order"):
            imported({name: X[0]}, keys=None)
        assert not (tmp_path / "dest.zarr").exists()
        result = import_with(tmp_path, {name: {"embedding": X[0], "class_name": "dog"}}, keys="file_id")
        assert list(result.store) == [f"{name}:dog"]
    result = import_with(tmp_path, {"dog:v1.wav": X[0], "cat:v1": X[1]}, keys="class:file_name")
    assert list(result.store) == ["v1:dog", "v1:cat"]


def test_an_entry_may_be_called_embeddings(imported):
    assert imported({"embeddings": X[0], "b:c": X[1]}).store.select().keys == ["embeddings", "b:c"]


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:TypedStorage")
def test_what_is_unreadable_is_listed_and_does_not_stop_the_rest(imported):
    found = {
        "good:x": X[0],
        7: X[1],
        "": X[1],
        "a:": X[1],
        ":b": X[1],
        b"raw": X[1],
        ("t", 1): X[1],
        "long" * 20_000: X[1],
        "nan:x": torch.tensor([1, float("nan"), 0]),
        "inf:x": torch.tensor([1, float("inf"), 0]),
        "other": X[:2],
        "shape:x": X[0, :2],
        "int:x": X[0].int(),
        "double:x": X[0].double(),
        "complex:x": X[0] * 1j,
        "list:x": [1, 2, 3],
        "none:x": None,
        "empty:x": {},
        "both:x": {"embedding": X[0], "embeddings": X[0]},
        "sparse:x": X[0].to_sparse(),
        "label:x": {"embedding": X[0], "class_name": "y"},
        "twin:x": X[0],
        "x:twin": {"embedding": X[1], "class_name": "x"},
        "number:x": {"embedding": X[0], "class_name": 5},
        "meta:x": X[0].to("meta"),
        "last:x": X[3],
        "q:x": torch.quantize_per_tensor(X[0], 0.1, 0, torch.qint8),
    }
    result = imported(found)
    assert result.store.select().keys == ["good:x", "last:x"]
    np.testing.assert_array_equal(result.store.select().to_numpy(), X[[0, 3]].numpy())
    assert set(reasons(result)) == set(found) - {"good:x", "last:x"}
    assert "NaN" in reasons(result)["nan:x"]
    assert "that of most (3,)" in reasons(result)["shape:x"]
    assert "casting=" in reasons(result)["double:x"]
    assert embstore.verify(result.path).ok
    assert "unreadable" in str(result)


def test_casts_only_if_asked(imported, tmp_path):
    found = {"a:x": X[0].double(), "b:x": X[1].double(), "c:x": X[2].half()}
    with pytest.raises(errors.DtypeError):
        imported(found)
    assert not (tmp_path / "dest.zarr").exists()
    result = imported(found, casting="same_kind")
    assert result.ok
    assert result.store.fields["embedding"].dtype == "float32"
    np.testing.assert_array_equal(result.store.select().to_numpy(), X[:3].numpy())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8", "int64", "bool", "uint8", "uint16"])
def test_dtypes(imported, dtype):
    x = (X % 2).to(getattr(torch, dtype))
    result = imported({f"{i}:c": x[i] for i in range(4)})
    assert result.store.fields["embedding"].dtype == dtype
    assert torch.equal(result.store.select().to_torch(), x)


def test_a_leading_one_goes_if_all_have_it(imported, tmp_path):
    result = imported({f"{i}:c": X[i : i + 1] for i in range(4)})
    np.testing.assert_array_equal(result.store.select().to_numpy(), X.numpy())
    result = import_with(tmp_path, {"a:x": X[:1], "b:x": X[1:2], "c:x": X[2]})
    assert list(reasons(result)) == ["c:x"]
    assert result.store.fields["embedding"].shape == (1, 3)


def import_with(tmp_path, found, **options):
    torch.save(found, tmp_path / "y.pt")
    options = {"config": CONFIG, "keys": LAST, **options}
    return import_file(tmp_path / "y.pt", tmp_path / f"y{len(os.listdir(tmp_path))}.zarr", **options)


def test_rows_of_different_lengths(imported, tmp_path):
    found = {"a:x": X[:1], "b:x": X[:4], "c:x": X[:0], "d:x": X[:4], "e:x": X[:2, :2], "f:x": X[2:4].to(torch.bfloat16)}
    result = imported(found)
    assert result.store.select().keys == ["b:x", "d:x"]
    assert "ragged=True" in reasons(result)["a:x"]
    result = import_with(tmp_path, found, ragged=True, casting="same_kind")
    assert result.store.select().keys == ["a:x", "b:x", "c:x", "d:x", "f:x"]
    assert result.store.fields["embedding"] == FieldSpec(shape=(3,), ragged=True)
    rows = result.store.select().to_ragged()
    assert [row.tolist() for row in rows] == [found[f"{n}:x"].float().tolist() for n in "abcdf"]
    found = {f"{i}:x": X[None, : i + 1] for i in range(3)}
    assert import_with(tmp_path, found, ragged=True).store.select().to_ragged().lengths.tolist() == [1, 2, 3]


def test_views_of_one_tensor_and_odd_strides(imported):
    base = torch.arange(24, dtype=torch.float32).reshape(3, 8)
    found = {"a:x": base[:, 0], "b:x": base[:, 5], "c:x": torch.ones(1).expand(3), "d:x": base.T[2].requires_grad_()}
    result = imported(found)
    expected = np.stack([value.detach().numpy() for value in found.values()])
    np.testing.assert_array_equal(result.store.select().to_numpy(), expected)


def test_scalars_that_make_columns(imported):
    def entry(i):
        given = {
            "text": "t" if i != 1 else None,
            "score": i if i % 2 else i / 4,
            "few": 1,
            "mixed": "a" if i else 1,
            "truth": i > 1,
            "count": np.int32(i),
            "tensor": torch.tensor(i),
            "gap": i,
            "list": [i],
            "sample": 1,
            "no name": 1,
            "big": 2**70,
            "lone": "\ud800",
        }
        for name, absent in (("few", i != 0), ("gap", i == 2), ("score", i == 3)):
            if absent:
                del given[name]
        return {"embedding": X[i], "class_name": "c", **given}

    result = imported({f"v{i}": entry(i) for i in range(4)})
    view = result.store.select()
    assert {name: view.column(name).tolist() for name in result.store.columns if name != "score"} == {
        "text": ["t", "", "t", "t"],
        "truth": [False, False, True, True],
        "count": [0, 1, 2, 3],
        "tensor": [0, 1, 2, 3],
    }
    np.testing.assert_array_equal(view.column("score"), [0, 1, 0.5, np.nan])
    assert {one.key for one in result.left_out} == {"few", "mixed", "gap", "list", "sample", "no name", "big", "lone"}


def test_old_files_are_read_into_memory(imported, caplog):
    with caplog.at_level(logging.WARNING, "embstore"):
        result = imported(
            {"a:x": X[0], "b:x": X[1]},
            save=lambda found, path: torch.save(found, path, _use_new_zipfile_serialization=False),
        )
    assert result.rows == 2
    assert "memory" in caplog.text


def test_many_blocks(imported, monkeypatch):
    monkeypatch.setattr("embstore.exchange.file_contents.BLOCK_ROWS", 7)
    x = torch.randn(100, 5)
    x[50, 2] = torch.inf
    result = imported({f"{i}:c{i % 3}": x[i] for i in range(100)})
    assert list(reasons(result)) == ["50:c2"]
    keep = [i for i in range(100) if i != 50]
    np.testing.assert_array_equal(result.store.select().to_numpy(), x[keep].numpy())
    assert result.store.select().keys == [f"{i}:c{i % 3}" for i in keep]


# -- what is broken or hostile ----------------------------------------------------------------


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["whole", "value", "key", "entry", "metadata", "array"])
def test_code_in_a_file_is_not_run(imported, tmp_path, where, zipped):
    touch = Touch(tmp_path / "touched")
    found = {
        "whole": touch,
        "value": {"a:x": X[0], "b:x": touch},
        "key": {"a:x": X[0], touch: X[1]},
        "entry": {"a:x": {"embedding": X[0], "label": touch}},
        "metadata": {"embeddings": {"a:x": X[0]}, "metadata": {"by": touch}},
        "array": {"a:x": np.array([touch], object)},
    }[where]
    with pytest.raises(errors.UnsafeFileError, match="nothing was run") as caught:
        imported(found, save=lambda found, path: torch.save(found, path, _use_new_zipfile_serialization=zipped))
    assert "system" in caught.value.reason or where == "array"
    assert not (tmp_path / "touched").exists()
    assert not (tmp_path / "dest.zarr").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_bare_pickle_is_not_run(tmp_path, file, protocol):
    file.write_bytes(pickle.dumps({"a:x": Touch(tmp_path / "touched")}, protocol=protocol))
    assert isinstance(refused(file, tmp_path, config={}), errors.FileFormatError)
    assert not (tmp_path / "touched").exists()


def test_a_whole_module_is_refused(file, tmp_path):
    torch.save(torch.nn.Linear(2, 2), file)
    with pytest.raises(errors.UnsafeFileError, match="Linear"):
        import_file(file, tmp_path / "dest.zarr", config={})


@pytest.mark.parametrize(
    "found", [X, [X], 7, {}, {"a:x": 1}, {"embeddings": {}}, {"a:x": torch.zeros(0)}, {"a": {"b": X}}]
)
def test_what_is_no_dictionary_of_embeddings(imported, tmp_path, found):
    with pytest.raises(errors.FileFormatError):
        imported(found)
    assert not (tmp_path / "dest.zarr").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_anywhere(tmp_path, file, zipped):
    torch.save({f"{i}:x": torch.randn(50) for i in range(9)}, file, _use_new_zipfile_serialization=zipped)
    data = file.read_bytes()
    for part in range(20):
        file.write_bytes(data[: len(data) * part // 20])
        assert isinstance(refused(file, tmp_path, config={}), errors.FileFormatError), part


@pytest.mark.filterwarnings("ignore")  # torch's, of what it can't make sense of
@pytest.mark.parametrize("kind", ["zipped", "old", "ours"])
def test_flipped_bits_never_raise_what_has_no_name(tmp_path, file, kind):
    if kind == "ours":
        export_file(rich(tmp_path / "a.zarr", 12), file)
    else:
        entries = {f"{i}:x": torch.randn(2) for i in range(5)}
        torch.save(entries, file, _use_new_zipfile_serialization=kind == "zipped")
    data, rng = file.read_bytes(), np.random.default_rng(3)
    for _ in range(150 if kind == "ours" else 300):
        flipped = bytearray(data)
        flipped[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        file.write_bytes(flipped)
        refused(file, tmp_path, config=None if kind == "ours" else {})


def test_a_tensor_that_claims_terabytes(tmp_path, file):
    torch.save({"a:x": torch.zeros(1).expand(2**40), "b:x": torch.zeros(1).expand(2**40)}, file)
    assert "claims" in str(refused(file, tmp_path, config={}))


def test_records_that_are_not_there(tmp_path, file):
    torch.save({"a:x": X[0].clone(), "b:x": X[1].clone()}, file)
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for left_out in members:
        with zipfile.ZipFile(tmp_path / "y.pt", "w") as archive:
            for name, data in members.items():
                if name != left_out:
                    archive.writestr(name, data)
        refused(tmp_path / "y.pt", tmp_path, config={})
    for name in [name for name in members if "/data/" in name]:
        with zipfile.ZipFile(tmp_path / "y.pt", "w") as archive:
            for other, data in members.items():
                archive.writestr(other, data[:4] if other == name else data)
        refused(tmp_path / "y.pt", tmp_path, config={})


# -- what embstore writes ---------------------------------------------------------------------


@pytest.mark.parametrize("n", [N, 1, 0])
@pytest.mark.parametrize("suffix", ["pt", "pth"])
def test_everything_comes_back(tmp_path, n, suffix):
    store = rich(tmp_path / "a.zarr", n)
    same(import_file(export_file(store, tmp_path / f"x.{suffix}"), tmp_path / "b.zarr").store, store)


def test_what_torch_loads_is_what_is_stored(tmp_path, file):
    store = rich(tmp_path / "a.zarr", dead=[2])
    export_file(store, file)
    found = torch.load(file, weights_only=True)
    view = store.select()
    assert list(found["embeddings"]) == view.keys
    assert found["metadata"] == store.config.to_dict()
    for i, (name, entry) in enumerate(found["embeddings"].items()):
        assert set(entry) == {*RICH, *COLUMNS, "class_name"}
        assert entry["class_name"] == name.rpartition(":")[2]
        assert torch.equal(entry["mean"], view.to_torch("mean")[i])
        assert entry["image"].numpy().tobytes() == view.to_numpy("image")[i].tobytes()
        assert len(entry["tokens"]) == view.to_ragged("tokens").lengths[i]
        assert entry["image"].untyped_storage().nbytes() == 24  # its own row, and nobody else's


def test_one_field_as_entries_with_its_columns(tmp_path, file):
    store = rich(tmp_path / "a.zarr")
    export_file(store, file, fields="image")
    entry = torch.load(file, weights_only=True)["embeddings"][key(1)]
    assert set(entry) == {"embedding", "class_name", *COLUMNS}
    result = import_file(file, tmp_path / "b.zarr")
    assert result.store.fields == {"image": RICH["image"]}
    assert result.store.columns == COLUMNS
    assert result.store.config == store.config


def test_a_file_of_ours_that_was_edited(tmp_path, file):
    store = rich(tmp_path / "a.zarr")
    export_file(store, file)
    found = torch.load(file, weights_only=True)
    del found["embeddings"][key(0)]
    torch.save(found, file)
    assert import_file(file, tmp_path / "a2.zarr").store.select().keys == store.select().keys[1:]
    for part in (
        {"image": X},
        {"image": X[:2].double()},
        {"image": None},
        {"k": "a"},
        {"k": 1000},
        {"split": 1},
        {"bits": X.to_sparse()},
    ):
        entry = found["embeddings"][key(3)]
        found["embeddings"][key(3)] = {**entry, **part}
        torch.save(found, file)
        assert isinstance(refused(file, tmp_path), errors.FileFormatError), part
        found["embeddings"][key(3)] = entry
    found["embeddings"]["x:y"] = X
    torch.save(found, file)
    assert "expected a dictionary" in str(refused(file, tmp_path))
    del found["embeddings"]["x:y"]
    for part in (
        {"fields": {}},
        {"columns": {}},
        {"fields": {"image": {}}, "columns": {}},
        {"fields": 7, "columns": {}},
    ):
        torch.save({**found, "embstore": part}, file)
        assert "metadata 'embstore' is broken" in str(refused(file, tmp_path))
    torch.save({name: part for name, part in found.items() if name != "metadata"}, file)
    assert "a config of NoneType" in str(refused(file, tmp_path))  # and no store of an empty config
    del found["embstore"]
    found["embeddings"] = {name: {"embedding": e["image"], "k": e["k"]} for name, e in found["embeddings"].items()}
    torch.save(found, file)
    result = import_file(file, tmp_path / "b.zarr", keys=LAST)
    assert len(result.unreadable) == 2  # the NaN, which nothing allows now
    assert result.config == store.config


def test_keys_that_others_would_read_the_other_way(tmp_path, file):
    with embstore.open(tmp_path / "a.zarr", "w-", config={"a": 1}) as store:
        store.append(["dog:x.wav", "a:b:c", "s3://x:y"], X[:3].numpy())
    export_file(store_of(tmp_path), file)
    assert import_file(file, tmp_path / "b.zarr").store.select().keys == ["dog:x.wav", "a:b:c", "s3://x:y"]


def store_of(tmp_path):
    return embstore.open(tmp_path / "a.zarr")


def test_torch_is_not_imported_for_other_formats(tmp_path):
    import subprocess
    import sys

    rich(tmp_path / "a.zarr")
    code = (
        "import sys, embstore\nfrom embstore.exchange import export_file, import_file\n"
        "store = embstore.open(sys.argv[1] + '/a.zarr')\n"
        "import_file(export_file(store, sys.argv[1] + '/x.npz'), sys.argv[1] + '/b.zarr')\n"
        "print([name for name in ('torch', 'h5py', 'pyarrow', 'safetensors', 'zarr') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_torch_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "x.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(errors.MissingLibraryError, match="torch"):
        import_file(Path(tmp_path / "x.pt"), tmp_path / "b.zarr")

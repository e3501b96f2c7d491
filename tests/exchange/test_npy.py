"""Folders of numbered .npy files: with Parquet, as clip-retrieval and LAION write them, and a folder a class."""

import itertools
import json

import numpy as np
import pytest

import embstore
from embstore import errors
from embstore.exchange import import_file

ROWS = np.arange(40, dtype=np.float16).reshape(10, 4)
CONFIG = {"encoder": "ViT-B/32"}


# -- beside Parquet ---------------------------------------------------------------------------


def clip_folder(path, *, cuts=(0, 4, 7, 10), column="image_path", width=1):
    """Write parts of rows as clip-retrieval does."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for name in ("img_emb", "text_emb", "metadata"):
        (path / name).mkdir(parents=True)
    for number, (start, stop) in enumerate(itertools.pairwise(cuts)):
        np.save(path / "img_emb" / f"img_emb_{number:0{width}}.npy", ROWS[start:stop])
        np.save(path / "text_emb" / f"text_emb_{number:0{width}}.npy", ROWS[start:stop] + 1)
        table = {column: [f"C:/{i}.jpg" for i in range(start, stop)], "caption": [f"a {i}" for i in range(start, stop)]}
        parquet.write_table(pa.table(table), path / "metadata" / f"metadata_{number:0{width}}.parquet")
    return path


@pytest.mark.parametrize("cuts", [(0, 10), (0, 4, 7, 10), tuple(range(11))])  # eleven parts: 10 comes after 9
@pytest.mark.parametrize(("column", "width"), [("image_path", 1), ("key", 4), ("SAMPLE_ID", 2)])
def test_arrays_beside_tables_of_their_numbers(tmp_path, cuts, column, width):
    folder = clip_folder(tmp_path / "clip", cuts=cuts, column=column, width=width)
    options = {} if column == "image_path" else {"keys": "file_id"}
    if column == "SAMPLE_ID":
        with pytest.raises(errors.FileFormatError, match="Expected keys"):
            import_file(folder, tmp_path / "a.zarr", config=CONFIG)
        options["key_column"] = column
    result = import_file(folder, tmp_path / "a.zarr", config=CONFIG, **options)
    view = result.store.select()
    assert result.ok
    assert view.file_ids == [f"C:/{i}.jpg" for i in range(10)]
    np.testing.assert_array_equal(view.to_numpy("img_emb"), ROWS)
    np.testing.assert_array_equal(view.to_numpy("text_emb"), ROWS + 1)
    assert view.column("caption").tolist() == [f"a {i}" for i in range(10)]
    assert embstore.verify(result.path).ok


def lost_array(folder):
    (folder / "img_emb" / "img_emb_1.npy").unlink()


def lost_table(folder):
    (folder / "metadata" / "metadata_1.parquet").unlink()


def shorter_array(folder):
    np.save(folder / "img_emb" / "img_emb_1.npy", ROWS[:2])


def broken_array(folder):
    (folder / "img_emb" / "img_emb_1.npy").write_bytes(b"\x93NUMPY\x01\x00nothing")


def cut_array(folder):
    path = folder / "img_emb" / "img_emb_1.npy"
    path.write_bytes(path.read_bytes()[:-3])


def objects(folder):
    np.save(folder / "img_emb" / "img_emb_1.npy", np.array([{}] * 3, object), allow_pickle=True)


def broken_table(folder):
    (folder / "metadata" / "metadata_1.parquet").write_bytes(b"PAR1")


def twice(folder):
    np.save(folder / "img_emb" / "img_emb_01.npy", ROWS[4:7])


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lost_array, "1 has one only"),
        (lost_table, "1 has one only"),
        (shorter_array, "'img_emb' has 2 rows in part 1, its table 3"),
        (broken_array, "img_emb_1.npy: it can't be read"),
        (cut_array, "img_emb_1.npy: it can't be read"),
        (objects, "img_emb_1.npy: it can't be read"),
        (broken_table, "metadata_1.parquet: it can't be read"),
        (twice, "have one number"),
    ],
)
def test_parts_that_do_not_fit_are_refused_by_name(tmp_path, damage, text):
    """A missing part would shift all rows behind it to other keys."""
    folder = clip_folder(tmp_path / "clip")
    damage(folder)
    with pytest.raises(errors.FileFormatError, match=text):
        import_file(folder, tmp_path / "a.zarr", config=CONFIG)
    assert not (tmp_path / "a.zarr").exists()


def test_other_parts_of_a_folder_are_listed(tmp_path):
    folder = clip_folder(tmp_path / "clip")
    (folder / "notes.txt").write_text("no rows")
    np.save(folder / "text_emb" / "text_emb_1.npy", ROWS[:3, :2])
    result = import_file(folder, tmp_path / "a.zarr", config=CONFIG)
    assert list(result.store.fields) == ["img_emb"]
    assert sorted(one.key for one in result.left_out) == ["notes.txt", "text_emb"]


@pytest.mark.parametrize("make", [lambda folder: None, lambda folder: np.save(folder / "x.npy", ROWS)])
def test_a_folder_without_keys_is_refused(tmp_path, make):
    (tmp_path / "rows").mkdir()
    make(tmp_path / "rows")
    with pytest.raises(errors.FileFormatError, match=r"[Ee]xpected"):
        import_file(tmp_path / "rows", tmp_path / "a.zarr", config=CONFIG)


@pytest.mark.parametrize("suffix", ["npz", "parquet", "h5", "pt"])
def test_the_column_of_keys_may_have_any_name(tmp_path, suffix):
    names, path = [f"s{i}" for i in range(10)], tmp_path / f"x.{suffix}"
    if suffix == "npz":
        np.savez(path, accession=np.array(names), id=np.arange(10), x=ROWS)
    elif suffix == "h5":
        with pytest.importorskip("h5py").File(path, "w") as file:
            file["accession"], file["id"], file["x"] = names, np.arange(10), ROWS
    elif suffix == "pt":
        torch = pytest.importorskip("torch")
        torch.save({"accession": names, "id": np.arange(10), "x": ROWS}, path)
    else:
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pa.table({"accession": names, "id": np.arange(10), "x": list(ROWS)}), path)
    result = import_file(path, tmp_path / "a.zarr", config=CONFIG, key_column="accession")
    assert result.store.select().file_ids == names
    assert result.store.columns == {"id": "int64"}
    with pytest.raises(errors.UnknownColumnError, match="accession"):
        import_file(path, tmp_path / "b.zarr", config=CONFIG, key_column="accesion")


# -- a folder a class -------------------------------------------------------------------------


def class_folders(path):
    """Write a class a folder, two chunks each, as fedgfe's newer cache does."""
    for place, name in enumerate(["Dog", "cat"]):
        (path / name).mkdir(parents=True)
        manifest = {"chunks": [], "file_id_to_index": {}, "embedding_shape": [4], "class_name": name}
        for number, rows in enumerate((ROWS[:2], ROWS[2:5])):
            np.save(path / name / f"embeddings_{number:03}.npy", rows + place)
            manifest["chunks"].append({"file": f"embeddings_{number:03}.npy"})
            manifest["file_id_to_index"] |= {f"v:{number}{row}": [number, row] for row in range(len(rows))}
        (path / name / "manifest.json").write_text(json.dumps(manifest))
    return path


def test_a_folder_for_each_class(tmp_path):
    result = import_file(class_folders(tmp_path / "cache"), tmp_path / "a.zarr", config=CONFIG, field="ast")
    assert result.ok
    names = [f"v:{name}" for name in ("00", "01", "10", "11", "12")]
    assert result.store.select().keys == [f"{name}:{label}" for label in ("Dog", "cat") for name in names]
    np.testing.assert_array_equal(result.store.select().to_numpy("ast"), np.concatenate([ROWS[:5], ROWS[:5] + 1]))


def test_rows_of_a_manifest_that_are_missing_are_listed(tmp_path):
    folder = class_folders(tmp_path / "cache")
    (folder / "Dog" / "embeddings_000.npy").unlink()
    result = import_file(folder, tmp_path / "a.zarr", config=CONFIG)
    assert (result.rows, [one.key for one in result.unreadable]) == (8, ["v:00:Dog", "v:01:Dog"])
    (folder / "cat" / "manifest.json").write_text("{")
    with pytest.raises(errors.FileFormatError, match=r"manifest.json: expected a manifest"):
        import_file(folder, tmp_path / "b.zarr", config=CONFIG)

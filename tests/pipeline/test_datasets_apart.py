"""Two data sets under one name: an error before anything is replaced or deleted, or a warning."""

import csv
import logging
import platform

import numpy as np
import pytest

import embstore
from embstore import errors
from embstore._engine.format.record import Origin
from embstore._engine.write import record_edits
from embstore.sources import Folder, HFDataset, Items, Table
from tests.pipeline.test_embed import Numbers, check, counts, encoded, files, numbers, unlabelled


def folder(tmp_path, place, contents):
    root = tmp_path / place
    root.mkdir(exist_ok=True)
    files(root, contents)
    return Folder(root, name="x")


def folder_of_just_now(tmp_path, place, contents):
    source = folder(tmp_path, place, contents)
    for path in source.root.iterdir():
        path.touch()
    return source


def folder_on_a_machine(tmp_path, place, contents, monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: place)
    return folder(tmp_path, "same", contents)


def listed(tmp_path, place, contents):
    folder(tmp_path, place, contents)
    rows = [{"file": f"{key.partition(':')[0]}.txt"} for key in contents]
    return Table(rows, name="x", path="file", root=tmp_path / place)


def texts(tmp_path, place, contents):
    path = tmp_path / f"{place}.csv"
    with path.open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "says"])
        writer.writerows([key.partition(":")[0], content] for key, content in contents.items())
    return Table(path, name="x", text="says", file_id="id")


def split(tmp_path, place, contents):
    hf = pytest.importorskip("datasets")
    table = {"id": [key.partition(":")[0] for key in contents], "says": [str(content) for content in contents.values()]}
    info = hf.DatasetInfo()
    info.builder_name, info.config_name = "imdb", "plain"
    dataset = hf.Dataset.from_dict(table, info=info, split=hf.NamedSplit(place))
    return HFDataset(dataset, name="x", content="says", file_id="id")


def made(make, tmp_path, place, contents, monkeypatch):
    more = [monkeypatch] if make is folder_on_a_machine else []
    return make(tmp_path, place, contents, *more)


@pytest.mark.parametrize("make", [folder, folder_of_just_now, listed, texts, split])
def test_equal_keys_and_other_content_in_another_place(cache, log, tmp_path, monkeypatch, make):
    """They would encode each other's rows again in each run."""
    contents, others = numbers(0, 6), {key: number + 100 for key, number in numbers(0, 6).items()}
    path = embstore.embed(made(make, tmp_path, "one", contents, monkeypatch), Numbers(log), cache).path
    source = made(make, tmp_path, "two", others, monkeypatch)
    with pytest.raises(errors.DatasetMismatchError, match="give it another name=") as caught:
        embstore.embed(source, Numbers(log), cache)
    assert caught.value.keys == tuple(unlabelled(contents))
    assert (caught.value.dataset, caught.value.path) == ("x", path)
    check(path, unlabelled(contents))
    source.name = "y"
    check(embstore.embed(source, Numbers(log), cache).path, unlabelled(others))
    source.name = "x"
    check(embstore.embed(source, Numbers(log), cache, force=True).path, unlabelled(others))  # as the message says


@pytest.mark.parametrize("make", [folder, listed, texts, split])
@pytest.mark.parametrize("noted", [True, False])
def test_a_data_set_that_moved_and_changed_in_part(cache, log, tmp_path, make, noted):
    """Its rows are noted at their new place as soon as a run has found them there unchanged."""
    encoder = Numbers(log)
    path = embstore.embed(make(tmp_path, "one", numbers(0, 6)), encoder, cache).path
    place = "two"
    if noted:
        before = embstore.embed(make(tmp_path, place, numbers(0, 6)), encoder, cache)
        assert counts(before) == (6, 6, 0, 0, 0, 0)
    source = make(tmp_path, place, {**numbers(0, 8), "f1:c1": 111, "f2:c2": 222})
    if not noted:
        with pytest.raises(errors.DatasetMismatchError, match=r"moved and changed.* pass force=True") as caught:
            embstore.embed(source, encoder, cache)
        assert set(caught.value.keys) == {"f1", "f2"}
        check(path, unlabelled(numbers(0, 6)))
    result = embstore.embed(source, encoder, cache, force=not noted)
    assert counts(result) == (8, 4, 4, 2, 0, 0)
    check(result.path, unlabelled({**numbers(0, 8), "f1:c1": 111, "f2:c2": 222}))


def test_a_store_has_a_bounded_list_of_origins(cache, log, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(record_edits, "MAX_ORIGINS", 2)
    sources = [folder(tmp_path, place, numbers(0, 6)) for place in ("one", "two", "three")]
    for source in sources:
        result = embstore.embed(source, Numbers(log), cache)
    with result.store as store:
        origins = store.snapshot.record.origins
        assert origins == tuple(Origin(kind="folder", root=str(source.root)) for source in sources[:2])
        assert set(store.select().column("source_origins").tolist()) == {3}
    assert "origins are noted" in caplog.text
    (sources[2].root / "f5.txt").unlink()
    assert embstore.embed(sources[2], Numbers(log), cache, vanished="delete").rows == 6  # not known as its own
    (sources[1].root / "f5.txt").unlink()
    result = embstore.embed(sources[1], Numbers(log), cache, vanished="delete")
    assert (result.rows, result.deleted, result.vanished) == (5, 1, ("f5",))
    assert "1 rows whose sample is gone, 1 of them deleted: f5" in str(result)


def test_all_files_of_one_folder_may_change(cache, log, tmp_path):
    embstore.embed(folder(tmp_path, "one", numbers(0, 6)), Numbers(log), cache)
    contents = {key: number + 100 for key, number in numbers(0, 6).items()}
    check(embstore.embed(folder(tmp_path, "one", contents), Numbers(log), cache).path, unlabelled(contents))


def in_memory(tmp_path, place, contents):
    return Items(contents, name="x")


@pytest.mark.parametrize("make", [in_memory, folder_on_a_machine])
def test_other_content_at_the_same_place_is_logged(cache, log, tmp_path, monkeypatch, caplog, make):
    """Containers have another name each time, so a machine is not part of the place."""
    contents = {key: number + 100 for key, number in numbers(0, 6).items()}
    embstore.embed(made(make, tmp_path, "one", numbers(0, 6), monkeypatch), Numbers(log), cache)
    with caplog.at_level(logging.WARNING, "embstore"):
        embstore.embed(made(make, tmp_path, "two", contents, monkeypatch), Numbers(log), cache)
    assert "6 of 6 rows of 'x' have other content" in caplog.text


# -- rows that would be deleted ------------------------------------------------------------------


@pytest.mark.parametrize("make", [folder, listed, texts, split])
@pytest.mark.parametrize("shared", [0, 2])
def test_a_test_set_deletes_no_training_set(cache, log, tmp_path, make, shared):
    embstore.embed(make(tmp_path, "train", numbers(0, 6)), Numbers(log), cache)
    test = {**numbers(0, shared), **numbers(6, 12)}
    result = embstore.embed(make(tmp_path, "test", test), Numbers(log), cache, vanished="delete")
    assert (result.rows, result.vanished, result.deleted) == (12, (), 0)


@pytest.mark.parametrize(
    ("stored", "start", "refused"), [(6, 6, True), (6, 5, False), (100, 50, False), (100, 51, True), (99, 98, False)]
)
def test_deletions_by_a_source_without_a_root(cache, log, stored, start, refused):
    source, test = (
        Items({key: str(number) for key, number in numbers(*ends).items()}, name="x")
        for ends in [(0, stored), (start, start + 200)]
    )
    path = embstore.embed(source, Numbers(log), cache).path
    encoded(log)
    if refused:
        with pytest.raises(errors.DatasetMismatchError, match=f"of {stored} rows") as caught:
            embstore.embed(test, Numbers(log), cache, vanished="delete")
        assert len(caught.value.keys) == start
        assert encoded(log) == []
        check(path, numbers(0, stored))
    result = embstore.embed(test, Numbers(log), cache, vanished="delete", force=refused)
    assert result.deleted == start
    check(path, numbers(start, start + 200))


def test_most_files_of_one_folder_may_be_removed(cache, log, tmp_path):
    source = folder(tmp_path, "one", numbers(0, 6))
    embstore.embed(source, Numbers(log), cache)
    for number in range(5):
        (source.root / f"f{number}.txt").unlink()
    assert embstore.embed(source, Numbers(log), cache, vanished="delete").rows == 1


def test_a_merge_reads_the_origins_of_each_part_by_its_own_list(cache, log, tmp_path):
    parts, roots = [], {}
    for number, place in enumerate(["one", "two"]):
        own = embstore.Cache(tmp_path / f"cache {place}")
        source = folder(tmp_path, place, numbers(6 * number, 6 * number + 6))
        parts.append(embstore.embed(source, Numbers(log), own).path)
        roots |= dict.fromkeys(unlabelled(numbers(6 * number, 6 * number + 6)), str(source.root))
    path = cache.path_of(embstore.open(parts[0]).config)
    embstore.merge(path, *reversed(parts))
    with embstore.open(path) as store:
        origins = store.snapshot.record.origins
        bits = store.select(keys=list(roots)).column("source_origins").tolist()
        assert [origins[bit.bit_length() - 1].root for bit in bits] == list(roots.values())
    (source.root / "f6.txt").unlink()
    assert embstore.embed(source, Numbers(log), cache, vanished="delete").vanished == ("f6",)


def test_an_export_says_nothing_of_places(cache, log, tmp_path):
    source = folder(tmp_path, "secret", numbers(0, 6))
    with embstore.embed(source, Numbers(log), cache).store as store:
        path = embstore.export_file(store, tmp_path / "a.npz")
    assert "source_digest" in np.load(path)
    assert "source_origins" not in np.load(path)
    for member in np.load(path).values():
        assert b"secret" not in member.tobytes()

"""Two data sets under one name: an error before anything is replaced or deleted, or a warning."""

import csv
import logging
import platform

import pytest

import embstore
from embstore import errors
from embstore.sources import Folder, HFDataset, Items, Table
from tests.pipeline.test_embed import Numbers, check, counts, files, numbers, unlabelled


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


@pytest.mark.parametrize("make", [folder, folder_of_just_now, folder_on_a_machine, listed, texts, split])
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
    with embstore.open(path, "r+") as store:
        store.delete(caught.value.keys)  # as the message says
    check(embstore.embed(source, Numbers(log), cache).path, unlabelled(others))


def test_a_data_set_that_moved_and_changed_in_part(cache, log, tmp_path):
    embstore.embed(folder(tmp_path, "one", numbers(0, 6)), Numbers(log), cache)
    contents = {**numbers(0, 8), "f1:c1": 111, "f2:c2": 222}
    result = embstore.embed(folder(tmp_path, "two", contents), Numbers(log), cache)
    assert counts(result) == (8, 4, 4, 2, 0, 0)
    check(result.path, unlabelled(contents))


def test_all_files_of_one_folder_may_change(cache, log, tmp_path):
    embstore.embed(folder(tmp_path, "one", numbers(0, 6)), Numbers(log), cache)
    contents = {key: number + 100 for key, number in numbers(0, 6).items()}
    check(embstore.embed(folder(tmp_path, "one", contents), Numbers(log), cache).path, unlabelled(contents))


def test_content_in_memory_has_no_place_so_a_warning_is_logged(cache, log, caplog):
    embstore.embed(Items(numbers(0, 6), name="x"), Numbers(log), cache)
    with caplog.at_level(logging.WARNING, "embstore"):
        embstore.embed(
            Items({key: number + 100 for key, number in numbers(0, 6).items()}, name="x"), Numbers(log), cache
        )
    assert "6 of 6 rows of 'x' have other content" in caplog.text


# -- rows that would be deleted ------------------------------------------------------------------


def in_memory(tmp_path, place, contents):
    return Items(contents, name="x")


@pytest.mark.parametrize("make", [folder, listed, texts, split, in_memory])
@pytest.mark.parametrize("shared", [0, 2])
def test_a_test_set_deletes_no_training_set(cache, log, tmp_path, monkeypatch, make, shared):
    train = numbers(0, 6)
    path = embstore.embed(made(make, tmp_path, "train", train, monkeypatch), Numbers(log), cache).path
    test = {**numbers(0, shared), **numbers(6, 12)}
    source = made(make, tmp_path, "test", test, monkeypatch)
    with pytest.raises(errors.DatasetMismatchError, match="of 6 rows") as caught:
        embstore.embed(source, Numbers(log), cache, vanished="delete")
    assert len(caught.value.keys) == 6 - shared
    with embstore.open(path) as store:
        assert len(store) == 6
    assert embstore.embed(source, Numbers(log), cache).rows == 12


def test_most_files_of_one_folder_may_be_removed(cache, log, tmp_path):
    source = folder(tmp_path, "one", numbers(0, 6))
    embstore.embed(source, Numbers(log), cache)
    for number in range(5):
        (source.root / f"f{number}.txt").unlink()
    assert embstore.embed(source, Numbers(log), cache, vanished="delete").rows == 1

"""The index in awkward moments: readers behind it, writers beside it, a kernel that maps no more."""

import numpy as np
import pytest

import embstore


@pytest.fixture(autouse=True)
def small_runs(monkeypatch):
    """Have runs written for stores of a hundred rows."""
    monkeypatch.setattr("embstore._engine.write.index_file._LEAST_RUN", 100)


def fill(store, start, stop):
    keys = [f"f{i}:c" for i in range(start, stop)]
    store.append(keys, np.arange(start, stop, dtype=np.float32)[:, None])
    return keys


@pytest.mark.parametrize("mapping", ["auto", "never"])
def test_a_reader_of_the_empty_store_beside_a_run_of_a_later_commit(path, mapping):
    """The run names rows that this commit does not have: the keys are missing, and that is all."""
    fields = {"f": embstore.FieldSpec(shape=(1,))}
    with embstore.open(path, "w-", config={}, fields=fields) as writer:
        reader = embstore.open(path, mapping=mapping)
        keys = fill(writer, 0, 200)
        assert list((path / "index").glob("keys.*"))
        assert reader.missing(keys) == keys
        assert "f1:c" not in reader
        assert reader.refresh()
        assert reader.missing([*keys, "other:c"]) == ["other:c"]


def test_a_run_that_can_not_be_mapped_is_read(path, monkeypatch):
    from embstore._engine.io import mapping

    with embstore.open(path, "w-", config={}) as writer:
        keys = fill(writer, 0, 200)
    real = mapping._mmap

    def refused(address, nbytes, protection, flags, descriptor):
        if descriptor >= 0:
            raise OSError(12, "Cannot allocate memory")
        return real(address, nbytes, protection, flags, descriptor)

    monkeypatch.setattr(mapping, "_mmap", refused)
    assert embstore.open(path).rows_of(keys).tolist() == list(range(200))


def test_a_writer_goes_on_after_another_removed_the_index(path, caplog):
    """An erase removes ``index/``; who has it open from before must not write into what is gone."""
    with embstore.open(path, "w-", config={}) as first, embstore.open(path, "r+") as second:
        keys = fill(first, 0, 200)
        second.erase(keys[:3])
        later = fill(first, 200, 900)
        assert not caplog.records
        assert [name.name.split(".")[2] for name in (path / "index").glob("keys.*")] == ["900"]
        assert embstore.open(path).rows_of(keys[3:] + later).tolist() == list(range(3, 900))
    assert embstore.verify(path).ok


# -- keys of one commit -----------------------------------------------------------------------


def test_a_key_has_another_row_or_none_in_a_later_commit(path):
    with embstore.open(path, "w-", config={}) as writer:
        keys = fill(writer, 0, 200)
        reader = embstore.open(path)
        assert reader.rows_of(keys[:4]).tolist() == writer.rows_of(keys[:4]).tolist() == [0, 1, 2, 3]
        assert reader.missing([*keys[:2], "new:c"]) == ["new:c"]
        writer.append(keys[:1], np.float32([[1000]]), if_exists="replace")
        writer.append(["new:c"], np.float32([[5]]))
        writer.delete(keys[1:2])
        writer.erase(keys[2:3])
        for store in (writer, reader):
            store.refresh()
            assert store[keys[0]] == 1000
            assert store["new:c"] == 5
            assert [key in store for key in keys[:4]] == [True, False, False, True]
            assert store.missing(keys[:4]) == keys[1:3]
            with pytest.raises(embstore.errors.MissingKeysError):
                store.fetch(keys[:4])


@pytest.mark.parametrize("wanted", [["f1:c", ("f1", "c")], ["f1:c", ["f1:c"]], ["f1:c", b"f1:c"], ["f1:c", None]])
def test_what_is_no_key_is_refused(path, wanted):
    with embstore.open(path, "w-", config={}) as writer:
        fill(writer, 0, 200)
        assert writer.rows_of(["f1:c", embstore.Key("f1", "c")]).tolist() == [1, 1]
        for _ in range(2):
            with pytest.raises(embstore.errors.KeyFormatError):
                writer.rows_of(wanted)


def test_other_texts_and_iterables_find_the_same(path):
    with embstore.open(path, "w-", config={}) as writer:
        keys = fill(writer, 0, 200)
        for _ in range(2):
            assert writer.rows_of(np.array(keys)).tolist() == list(range(200))
            assert writer.rows_of(tuple(keys[:3])).tolist() == [0, 1, 2]
            assert writer.find(key for key in [*keys[:2], "other:c"]).tolist() == [0, 1, -1]
            assert writer.rows_of([]).tolist() == []


@pytest.mark.parametrize("mapping", ["auto", "never"])
def test_rows_that_another_process_erased_are_not_served(path, mapping):
    with embstore.open(path, "w-", config={}) as writer:
        keys = fill(writer, 0, 200)
        reader = embstore.open(path, mapping=mapping)
        assert reader.rows_of(keys).tolist() == list(range(200))
        writer.erase(keys[:1])
        with pytest.raises(embstore.errors.StoreChangedError):
            reader.fetch(keys[:1])
        reader.refresh()
        assert keys[0] not in reader

"""The index in awkward moments: readers behind it, writers beside it, a kernel that maps no more."""

import numpy as np
import pytest

import embstore


@pytest.fixture(autouse=True)
def small_runs(monkeypatch):
    """Have runs written for stores of a hundred rows."""
    monkeypatch.setattr("embstore.index._LEAST_RUN", 100)


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
    from embstore import mapping

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

"""The commands on stores in buckets: `push`, `pull`, `tidy`."""

import json

import numpy as np
import pytest

import embstore
from embstore.cli import main
from embstore.cli.exits import ABSENT, ANOTHER, DONE, WRONG

pytest.importorskip("obstore")
buckets = pytest.importorskip("tests._helpers.buckets").buckets

URL = "s3://mem/pets.zarr"


@pytest.fixture
def store(tmp_path):
    with embstore.open(tmp_path / "s.zarr", "w-", config={"a": 1}) as store:
        store.append(["a:dog", "b:cat"], np.ones((2, 3), np.float32))
    return tmp_path / "s.zarr"


def test_push_pull_tidy(buckets, store, said, tmp_path):
    mirror = tmp_path / "m"
    assert said("push", store, URL, "-q") == [f"{URL}: 2 rows added, 0 skipped"]
    assert said("push", store, URL) == [f"{URL}: 0 rows added, 2 skipped"]
    assert said("push", store, URL, "--if-exists", "replace") == [
        f"{URL}: 2 rows added, 2 of them in place of others, 0 skipped"
    ]
    (line,) = said("pull", URL, mirror)
    assert line.startswith(f"{mirror}: 2 rows, 2 of 2 parts fetched, ")
    (facts,) = said("pull", URL, mirror, "--json", "-q")
    assert facts == {"path": str(mirror), "rows": 2, "parts": 2, "fetched": 0, "nbytes": 0, "removed": 0}
    assert said("info", mirror)[1] == "rows     2, and 2 deleted"
    embstore.open(URL, "r+").compact()
    assert said("tidy", URL, "--older-than", "1d") == [f"{URL}: 0 objects deleted, 0 B"]
    (facts,) = said("tidy", URL, "--older-than", "0s", "--json")
    assert facts["objects"] == 3
    assert said("pull", URL, mirror)[0].startswith(f"{mirror}: 2 rows, 1 of 1 parts fetched, ")


def test_what_is_refused(buckets, store, refused, tmp_path, capsys):
    assert "pets.zarr" in refused(ABSENT, "pull", URL, tmp_path / "m")
    assert "nowhere" in refused(ABSENT, "push", tmp_path / "nowhere", URL)
    assert "pets.zarr" in refused(ABSENT, "tidy", URL, "--older-than", "1d")
    refused(WRONG, "tidy", URL)
    refused(WRONG, "tidy", URL, "--older-than", "soon")
    refused(WRONG, "pull", store, tmp_path / "m")
    refused(WRONG, "push", URL, URL)
    assert main(["push", str(store), URL, "--json"]) == DONE
    assert json.loads(capsys.readouterr().out)["appended"] == 2
    assert "a store of its own" in refused(ANOTHER, "pull", URL, store)
    embstore.open(URL, "r+").erase(["a:dog"])
    assert "seen_epoch=1" in refused(ANOTHER, "push", store, URL)
    assert main(["push", str(store), URL, "--seen-epoch", "1"]) == DONE

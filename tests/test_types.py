"""Type checkers: right names pass, and a misspelt name or a missing fact is an error."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = """
from pathlib import Path
from typing import assert_type

import embstore
import embstore_fl
from embstore import EmbeddingStore, errors
from embstore.analysis import centroid  # wrong
from embstore.analysis import centroids
from embstore.encoders import FunctionEncodr  # wrong
from embstore.encoders import FunctionEncoder
from embstore.exchange import import_fil  # wrong
from embstore.exchange import import_file
from embstore.sources import Foldr  # wrong
from embstore.sources import Folder
from embstore_fl.a2v import A2VDatset  # wrong
from embstore_fl.a2v import A2VDataset
from embstore_fl.datasets import VEGS  # wrong
from embstore_fl.datasets import VEGAS

embstore.opne("a.zarr")  # wrong
assert_type(embstore.open("a.zarr"), EmbeddingStore)
assert_type(embstore.open("a.zarr").select().store, EmbeddingStore)
embstore.open("a.zarr").select().store.array()
embstore.open("a.zarr").select().store.arry()  # wrong
embstore_fl.erase_clent  # wrong
embstore_fl.erase_client
embstore.errors.KeyFormtError  # wrong
errors.DtypeError("f", expected="float32", found="int8")
errors.DtypeError("f", expected="float32")  # wrong
errors.DtypeError("f", expected="float32", found="int8", hnt="")  # wrong
errors.NotAStoreError(Path("a"), 3)  # wrong
errors.MissingKeysError([3])  # wrong
errors.DecodeError("it is empty", path=None)
error = errors.MissingKeysError(["a:b"], path=Path("a"))
assert_type(error.keys, tuple[str, ...])
error.kys  # wrong
embstore_fl.errors.NodeRangeError(3, nodes=2, hint="fewer")
embstore_fl.errors.NodeRangeError(3)  # wrong
"""


def test_mypy_accepts_right_names_and_no_misspelt_ones(tmp_path):
    pytest.importorskip("mypy")
    pytest.importorskip("torch")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--config-file", "pyproject.toml"]
    done = subprocess.run([*command, str(program)], cwd=ROOT, capture_output=True, text=True)
    found = {int(line) for line in re.findall(r"program\.py:(\d+): error", done.stdout)}
    wrong = {i for i, line in enumerate(PROGRAM.splitlines(), start=1) if "# wrong" in line}
    assert found == wrong, done.stdout + done.stderr

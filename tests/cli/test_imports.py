"""What the command imports of the library, and which libraries it leaves alone."""

import ast
from pathlib import Path

import numpy as np
import pytest

import embstore
from tests._helpers.crash import python

ROOT = Path(embstore.__file__).parent
PUBLIC = {"embstore", "embstore.errors", "embstore.torch"} | {
    f"embstore.{room}" for room in ("analysis", "cache", "encoders", "exchange", "pipeline", "sources", "store")
}
INSIDE = ("embstore.cli.", "embstore._engine.io.", "embstore._engine.format.")
LEAVES = {f"embstore._engine.{leaf}" for leaf in ("lazy", "progress", "sizes", "version")}
# The type of what `Cache.stats` returns has no public name.
TYPES = {("caches.py", "embstore.cache.prune")}


def imports(path):
    """Yield the modules that a module imports, in functions and for types too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_the_command_uses_public_names_formats_files_and_leaves():
    found = {(path.name, name) for path in (ROOT / "cli").glob("*.py") for name in imports(path)}
    own = {(path, name) for path, name in found if name.partition(".")[0] in ("embstore", "embstore_fl")}
    private = {(path, name) for path, name in own if name not in PUBLIC | LEAVES and not name.startswith(INSIDE)}
    assert private == TYPES


HEAVY = {"torch", "transformers", "zarr", "pandas", "pyarrow", "rich", "fsspec", "numcodecs", "asyncio"}


@pytest.mark.parametrize(
    "words",
    [
        *("--help", "embed --help", "info --help", "cache prune --help", "cache ls CACHE", "cache stats CACHE"),
        *("info STORE", "info STORE --json", "ls STORE", "ls STORE -l --where split=train", "get STORE a:dog"),
        "verify STORE",
    ],
)
def test_nothing_heavy_is_imported(tmp_path, words):
    """These commands have to answer at once."""
    with embstore.Cache(tmp_path).open({"a": 1}, "a") as store:
        store.append(["a:dog"], np.ones((1, 2), np.float32), columns={"split": "train"})
    heavy = HEAVY | ({"numpy"} if "--help" in words else set())
    given = [{"CACHE": tmp_path, "STORE": store.path}.get(word, word) for word in words.split()]
    code = (
        f"import sys\nfrom embstore.cli import main\nassert main(sys.argv[1:]) == 0\nprint(*{heavy} & {{*sys.modules}})"
    )
    assert python(code, *given).splitlines()[-1] == ""

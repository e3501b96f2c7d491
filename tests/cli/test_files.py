"""The commands between a store and other files: import, export, plot, explore."""

import inspect
import json
import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import embstore
from embstore.analysis import explore
from embstore.cli import group, main
from embstore.cli.exits import ABSENT, AGAIN, ANOTHER, BROKEN, DONE, PARTLY, WRONG
from embstore.exchange import export_file, import_file
from embstore.exchange.file_contents import FORMATS
from tests.cli.events import ROOT, started

CONFIG = {"encoder": {"id": "MIT/ast"}, "dataset": "pets", "duration": 5}
KEYS = ["a:dog", "b:dog", "c:cat", "d:owl"]
ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)
NEEDS = {"pt": "torch", "npz": "numpy", "hdf5": "h5py", "safetensors": "safetensors", "parquet": "pyarrow"}


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def store(path):
    with embstore.open(path, "w-", config=CONFIG) as store:
        store.append(KEYS, ROWS, columns={"split": ["train", "test", "train", "test"], "n": [1, 2, 3, 4]})
    return str(path)


@pytest.fixture
def npz():
    """A file of somebody else's, without a config."""
    np.savez("old.npz", keys=["x:dog", "y:cat", "nonsense:"], mean=np.ones((3, 2), np.float32), age=[1, 2, 3])
    return "old.npz"


# -- import and export ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_there_and_back(store, said, kind):
    pytest.importorskip(NEEDS[kind])
    suffix = {"hdf5": "h5"}.get(kind, kind)
    assert said("export", store, f"all.{suffix}") == [f"all.{suffix}: 4 rows"]
    said("export", store, "named otherwise", "--format", kind)
    lines = said("import", f"all.{suffix}", "new.zarr")
    assert lines[0].startswith("4 rows added, 0 replaced, 0 skipped, 0 unreadable, in ")
    assert lines[1:] == [f"in {Path('new.zarr').absolute()}"]
    said("import", "named otherwise", "again.zarr", "--format", kind)
    for name in ("new.zarr", "again.zarr"):
        found = embstore.open(name)
        assert found.config == CONFIG
        assert list(found) == KEYS
        np.testing.assert_array_equal(found.array(), ROWS)
        assert found.select().column("split").tolist() == ["train", "test", "train", "test"]


def test_export_one_array_a_row(store, said):
    said("export", store, "s.npz", "--layout", "per-key", "--field", "embedding", "--keys", "file_id")
    with np.load("s.npz") as file:
        assert sorted(file) == sorted(embstore.open(store).select().file_ids)


def test_export_some(store, said):
    assert said("export", store, "s.npz", "--class", "dog", "--where", "split=train", "--field", "embedding") == [
        "s.npz: 1 rows"
    ]
    with np.load("s.npz") as file:
        np.testing.assert_array_equal(file["embedding"], ROWS[:1])
    said("export", store, "s.npz", "--where", "n=[2,4]")  # what was there is replaced
    with np.load("s.npz") as file:
        assert len(file["embedding"]) == 2


@pytest.mark.parametrize(
    ("words", "status", "reason"),
    [
        (["s.txt"], WRONG, "'.txt' is not one of "),
        (["s"], WRONG, "no suffix"),
        (["s.npz", "--format", "zip"], WRONG, "'zip' is not one of"),
        (["s.npz", "--field", "nonsense"], ABSENT, "no field 'nonsense'"),
        (["s.npz", "--field", ""], ABSENT, "no field ''"),
        (["s.npz", "--class", "unicorn"], ABSENT, "no class 'unicorn'"),
        (["s.npz", "--where", "nonsense=1"], ABSENT, "no column 'nonsense'"),
        (["s.npz", "--where", "n=x"], WRONG, "holds int64"),
        (["nowhere/s.npz"], ABSENT, "nowhere"),
        (["folder"], WRONG, "folder is not a file"),
        (["/dev/null", "--format", "npz"], WRONG, "/dev/null is not a file"),
        (["s3://bucket/s.npz"], WRONG, "is a URL"),
        ([""], WRONG, "expected a path"),
        ([], WRONG, "Missing argument 'FILE'"),
    ],
    ids=str,
)
def test_exports_that_make_no_sense(store, refused, words, status, reason):
    Path("folder").mkdir()
    assert reason in refused(status, "export", store, *words)
    assert sorted(path.name for path in Path().iterdir()) == ["folder", "store.zarr", "store.zarr.lock"]


def test_import_of_a_file_without_a_config(npz, said, refused):
    assert "pass --config or --set" in refused(WRONG, "import", npz, "new.zarr")
    assert not Path("new.zarr").exists()
    assert "keys=" in refused(BROKEN, "import", npz, "new.zarr", "--set", "a=1")
    assert not Path("new.zarr").exists()
    words = ["--set", "encoder.id=MIT/ast", "--set", "encoder.version=2", "--set", "duration=5", "--set", 'name="5"']
    lines = said("import", npz, "new.zarr", "--keys", "file_id:class", *words, status=PARTLY)
    assert lines[0].startswith("2 rows added, 0 replaced, 0 skipped, 1 unreadable")
    assert lines[2] == "unreadable:"
    assert lines[3].startswith("  nonsense:: ")
    found = embstore.open("new.zarr")
    assert found.config == {"encoder": {"id": "MIT/ast", "version": 2}, "duration": 5, "name": "5"}
    assert sorted(found) == ["x:dog", "y:cat"]
    assert found.select(keys=["y:cat"]).column("age").tolist() == [2]


def test_import_with_a_config_of_a_file(npz, said, refused):
    Path("config.json").write_text(json.dumps(CONFIG))
    words = ["--config", "config.json", "--set", "encoder.v=2", "--keys", "file_id:class", "--json"]
    (answer,) = said("import", npz, "new.zarr", *words, status=PARTLY)
    config = {**CONFIG, "encoder": {"id": "MIT/ast", "v": 2}}
    assert {name: answer[name] for name in ("path", "rows", "skipped", "replaced", "config")} == {
        **{"path": str(Path("new.zarr").absolute()), "rows": 2, "skipped": 0, "replaced": 0, "config": config}
    }
    assert answer["ok"] is False
    assert [entry["key"] for entry in answer["unreadable"]] == ["nonsense:"]
    for content, reason in {
        "{": "config.json is not JSON",
        "[" * 100_000: "config.json is not JSON",
        "[]": "expected a JSON object, found list",
        "7": "expected a JSON object, found int",
        "\udcff": "config.json is not JSON",
    }.items():
        Path("config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
        assert reason in refused(WRONG, "import", npz, "new.zarr", "--config", "config.json")
    refused(ABSENT, "import", npz, "new.zarr", "--config", "nowhere.json")


def test_import_into_a_cache(npz, said, refused):
    words = ["--cache", "pets.cache", "--set", "encoder=ast", "--column", "age", "--keys", "file_id:class"]
    said("import", npz, *words, status=PARTLY)
    with embstore.Cache("pets.cache").open({"encoder": "ast"}) as store:
        assert len(store) == 2
    assert "are stored already" in refused(ANOTHER, "import", npz, *words)
    assert said("import", npz, *words, "--if-exists", "skip", status=PARTLY)[0].startswith(
        "0 rows added, 0 replaced, 2"
    )
    assert said("import", npz, *words, "--if-exists", "replace", status=PARTLY)[0].startswith(
        "2 rows added, 2 replaced"
    )


def test_how_a_file_is_understood(said, refused):
    np.savez("bare.npz", keys=["x", "y"], a=np.ones((2, 2)), b=np.ones((2, 3)), n=[1, 2], m=[3, 4])
    words = ["--set", "a=1", "--class", "dog", "--field", "b"]
    assert "float64" in refused(WRONG, "import", "bare.npz", "new.zarr", *words)
    assert said("import", "bare.npz", "new.zarr", *words, "--cast", "--column", "n")[0].startswith("2 rows added")
    found = embstore.open("new.zarr")
    assert list(found) == ["x:dog", "y:dog"]
    assert {name: spec.dtype for name, spec in found.fields.items()} == {"b": "float32"}
    assert list(found.columns) == ["n"]
    said("import", "bare.npz", "unlabelled.zarr", "--set", "a=1", "--field", "a", "--cast")
    assert list(embstore.open("unlabelled.zarr")) == ["x", "y"]
    assert list(embstore.open("unlabelled.zarr").columns) == ["n", "m"]


@pytest.mark.skipif(not find_spec("torch"), reason="needs torch")
def test_rows_of_their_own_lengths(said):
    import torch

    torch.save({"x:dog": torch.ones(2, 3), "y:dog": torch.ones(4, 3)}, "old.pt")
    said("import", "old.pt", "new.zarr", "--set", "a=1", "--ragged", "--keys", "file_id:class")
    (spec,) = embstore.open("new.zarr").fields.values()
    assert spec.ragged


@pytest.mark.parametrize(
    ("words", "status", "reason"),
    [
        (["nowhere.npz", "new.zarr"], ABSENT, "nowhere.npz"),
        (["folder.npz", "new.zarr"], None, "folder.npz"),
        (["broken.npz", "new.zarr"], BROKEN, "broken.npz"),
        (["empty.npz", "new.zarr"], BROKEN, "empty.npz"),
        (["old.npz", "new.zarr", "--format", "hdf5"], BROKEN, "old.npz"),
        (["old.txt", "new.zarr"], WRONG, "'.txt' is not one of "),
        (["old.npz"], WRONG, "pass either DEST"),
        (["old.npz", "new.zarr", "--cache", "c"], WRONG, "pass either DEST"),
        (["old.npz", ""], WRONG, "expected a path"),
        (["", "new.zarr"], WRONG, "expected a path"),
        (["old.npz", "--cache", ""], WRONG, "expected a path"),
        (["old.npz", "new.zarr", "--set", "a"], WRONG, "expected NAME=VALUE"),
        (["old.npz", "new.zarr", "--set", "a.b=1"], WRONG, "--set a: it has attributes already"),
        (
            ["old.npz", "new.zarr", "--set", "b=1", "--set", "b.c=1"],
            WRONG,
            "--set b.c: 'b' is 1, and has no attributes",
        ),
        (["old.npz", "new.zarr", "--set", "b=NaN"], WRONG, "config attribute 'b'"),
        (["old.npz", "new.zarr", "--field", "nonsense", "--column", "nonsense"], ABSENT, "nonsense"),
        (["old.npz", "new.zarr", "--if-exists", "nonsense"], WRONG, "'nonsense' is not one of"),
        (["old.npz", "new.zarr", "--keys", "nonsense"], WRONG, "'nonsense' is not one of"),
        (["old.npz", "file"], None, "file"),
        (["old.npz", "folder.npz"], None, "folder.npz"),
        (["old.npz", "nowhere/under/new.zarr"], PARTLY, ""),
    ],
    ids=str,
)
def test_imports_that_make_no_sense(npz, refused, capsys, words, status, reason):
    pytest.importorskip("h5py")
    Path("folder.npz").mkdir()
    Path("broken.npz").write_bytes(Path(npz).read_bytes()[:-30])
    Path("empty.npz").write_text("")
    Path("file").write_text("x")
    Path("old.txt").write_text("x")
    words = ["import", "--keys", "file_id:class", *words, "--set", "a=1"]
    if status == PARTLY:
        assert main(words) == PARTLY
        return
    if status is None:
        status = main(words)
        assert status in (WRONG, ABSENT, AGAIN, BROKEN)
        capsys.readouterr()
    assert reason in refused(status, *words)
    assert not Path("new.zarr").exists()
    assert not Path("c").exists()


def test_a_store_of_another_config(store, npz, refused):
    line = refused(ANOTHER, "import", npz, store, "--set", "a=1", "--keys", "file_id:class")
    assert "the config of" in line
    export_file(embstore.open(store), "s.npz")
    line = refused(ANOTHER, "import", "s.npz", "new.zarr", "--set", "a=1")
    assert "s.npz" in line


@pytest.mark.skipif(not find_spec("torch"), reason="needs torch")
def test_a_file_that_would_run_code(refused):
    import torch

    class Evil:
        def __reduce__(self):
            return os.system, ("touch ran",)

    torch.save({"x:dog": Evil()}, "evil.pt")
    refused(BROKEN, "import", "evil.pt", "new.zarr", "--set", "a=1")
    assert not Path("ran").exists()


def test_a_library_that_is_not_installed(store, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert "pip install 'embstore[exchange]'" in refused(ABSENT, "export", store, "s.h5")


def test_options_are_those_of_the_functions():
    """Whatever a function takes has an option, or a reason to have none."""
    commands = {name: group.get_command(None, name) for name in ("import", "export", "plot", "explore")}
    of_commands = {name: {parameter.name for parameter in command.params} for name, command in commands.items()}
    called = {"config_file", "pairs", "cast", "quiet", "as_json", "verbose", "cache", "storage", "seed", "store"}
    selecting = {"classes", "where"}

    def parameters(function):
        return {name for name, p in inspect.signature(function).parameters.items() if p.kind is not p.VAR_KEYWORD}

    assert of_commands["import"] - called == parameters(import_file) - {"config", "fields", "casting", "progress"}
    assert of_commands["export"] - called - selecting == parameters(export_file) - {"rows"}
    assert of_commands["plot"] - called - selecting == parameters(embstore.View.plot) - {"self", "rng", "columns"}
    assert of_commands["explore"] - called - selecting == parameters(explore) - {"view", "options", "rng"}
    (formats,) = [p.type.choices for p in commands["import"].params if p.name == "format"]
    assert tuple(formats) == FORMATS
    (most,) = [p.default for p in commands["plot"].params if p.name == "max_points"]
    assert most == inspect.signature(embstore.View.plot).parameters["max_points"].default


def test_a_bar_unless_quiet(npz, said, monkeypatch):
    """Whether people see it, `reporting` finds out."""
    asked = []

    def imported(*arguments, **options):
        asked.append(options["progress"])
        return import_file(*arguments, **{**options, "progress": None})

    monkeypatch.setattr("embstore.exchange.import_file", imported)
    for words in ([], ["-q"]):
        given = ["--set", "a=1", "--keys", "file_id:class", "--if-exists", "skip"]
        said("import", npz, "new.zarr", *given, *words, status=PARTLY)
    assert asked == [None, False]


# -- plot -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("file", "library"), [("p.png", "matplotlib"), ("p.svg", "matplotlib"), ("p.html", "plotly")])
def test_plot(store, said, file, library):
    pytest.importorskip(library)
    assert said("plot", store, file) == [f"{file}: 4 points of 4 rows"]
    first = Path(file).read_bytes()
    assert len(first) > 1000
    options = ["--color", "split", "--class", "dog", "--class", "owl", "--max-points", "2", "--seed", "7"]
    assert said("plot", store, file, *options) == [f"{file}: 2 points of 3 rows"]
    assert Path(file).read_bytes() != first


@pytest.mark.parametrize(
    ("words", "status", "reason"),
    [
        (["p.txt"], WRONG, "expected a file that ends in"),
        (["p"], WRONG, "expected a file that ends in"),
        (["p.png", "--color", "nonsense"], ABSENT, "no column 'nonsense'"),
        (["p.png", "--field", "nonsense"], ABSENT, "no field 'nonsense'"),
        (["p.png", "--where", "n=99"], WRONG, "the view of "),
        (["p.png", "--method", "nonsense"], WRONG, "'nonsense' is not one of"),
        (["p.png", "--seed", "-1"], WRONG, "-1 is not in the range"),
        (["p.png", "--max-points", "0"], WRONG, "0 is not in the range"),
        (["p.png", "--storage", "a=1"], WRONG, "expected a URL with storage_options"),
        (["."], WRONG, "is not a file"),
        (["nowhere/p.png"], ABSENT, "nowhere"),
    ],
    ids=str,
)
def test_plots_that_make_no_sense(store, refused, words, status, reason):
    pytest.importorskip("matplotlib")
    assert reason in refused(status, "plot", store, *words)
    assert not list(Path().glob("p*"))


@pytest.mark.skipif(find_spec("umap") is not None, reason="umap is installed")
def test_a_method_that_is_not_installed(store, refused):
    with embstore.open(store, "r+") as opened:
        more = [f"{i}:dog" for i in range(50)]
        opened.append(more, np.ones((50, 3), np.float32), columns={"split": "train", "n": 0})
    assert "pip install 'embstore[umap]'" in refused(ABSENT, "plot", store, "p.png", "--method", "umap")


# -- explore ----------------------------------------------------------------------------------


@pytest.fixture
def atlas(tmp_path, monkeypatch):
    """Stand for embedding-atlas: notes what it is called with, and ends as it is told to."""
    pytest.importorskip("pyarrow")

    def atlas(code):
        program = tmp_path / "bin" / "embedding-atlas"
        program.parent.mkdir(exist_ok=True)
        program.write_text(
            f"#!{sys.executable}\nimport sys, time\nopen('called', 'w').write(' '.join(sys.argv[1:]))\n{code}\n"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    return atlas


@pytest.mark.parametrize(("code", "status"), [("", DONE), ("sys.exit(3)", PARTLY)])
def test_explore(store, said, atlas, code, status):
    atlas(code)
    said("explore", store, "--class", "dog", "--seed", "1", status=status)
    assert Path("called").read_text().split()[1:] == ["--vector", "vector", "--x", "x", "--y", "y"]


def test_explore_until_it_is_ended(store, atlas):
    atlas("time.sleep(600)")
    process = started(WAITING, "explore", store, env={**os.environ, "PYTHONPATH": str(ROOT)})
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (DONE, b"")


WAITING = """
from embstore.analysis.atlas import Exploration
from embstore.cli import main
own = Exploration.wait
def wait(self):
    reached()
    return own(self)
Exploration.wait = wait
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(find_spec("embedding_atlas") is not None, reason="embedding-atlas is installed")
def test_explore_without_the_program(store, refused, monkeypatch):
    assert "pip install 'embstore[atlas]'" in refused(ABSENT, "explore", store)


def test_explore_nothing(store, refused, atlas):
    atlas("")
    refused(WRONG, "explore", store, "--where", "n=99")
    refused(ABSENT, "explore", "nowhere")

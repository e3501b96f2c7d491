"""The command `embstore`: what it does, what it says, and how it ends."""

import inspect
import io
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
import pytest

import embstore
import embstore.__main__
import embstore.encoders
from embstore import FieldSpec, errors
from embstore.cli import main
from embstore.cli.exits import ABSENT, AGAIN, ANOTHER, BROKEN, DONE, EXITS, INTERRUPTED, PARTLY, WRONG, status_of
from embstore.encoders import FunctionEncoder
from embstore.pipeline.embed import part_path
from tests.cli.events import started

ROOT = Path(__file__).parents[2]


class Loaded(FunctionEncoder):
    """A function that counts as a model which has to be loaded, so that no sample is encoded again to compare."""

    @property
    def in_memory(self):
        return False


class Models:
    """Stands for `from_pretrained`: encodes bytes or text as how many, and how many different ones there are."""

    def __init__(self):
        self.asked = []
        self.encoded = []
        self.during = lambda items: None
        self.factor = 1

    def __call__(self, model, *, fields=None, device=None, **options):
        if not model.startswith("tiny"):
            raise errors.ModelFilesError(model, "config.json")
        self.asked.append({"model": model, "fields": fields, "device": device, **options})
        declared = {name: FieldSpec(shape=(2,)) for name in fields or ["mean"]}
        said = {name: value for name, value in options.items() if value is not None}
        return Loaded(
            lambda items: self._run(items, declared),
            config={"encoder": {"id": model}, **said},
            fields=declared,
            decode=self._decode,
        )

    def _decode(self, content):
        if content in (b"", ""):
            raise errors.DecodeError("it is empty")
        return content

    def _run(self, items, fields):
        self.during(items)
        self.encoded += items
        rows = np.array([[self.factor * len(item), len(set(item))] for item in items], np.float32)
        return dict.fromkeys(fields, rows)


@pytest.fixture
def models(monkeypatch):
    models = Models()
    monkeypatch.setattr(embstore.encoders, "from_pretrained", models)
    return models


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, ns=(10**18, 10**18))


@pytest.fixture
def sounds(tmp_path):
    for name, data in {"dog/1.wav": b"bark", "dog/2.wav": b"woof!", "cat/1.wav": b"purr", "cat/note.txt": b"x"}.items():
        write(tmp_path / "sounds" / name, data)
    return tmp_path / "sounds"


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("id,says,label\n1,It barks.,dog\n2,It purrs.,cat\n3,It hoots.,\n")
    return path


@pytest.fixture
def words(tmp_path, models):
    """Return the words of a command on a source, with a name, a model and a cache."""

    def words(command, source, *more, name="pets", model="tiny", cache=tmp_path / "cache"):
        return [command, source, "--name", name, "--model", model, "--cache", cache, *more]

    return words


@pytest.fixture
def call(words, said):
    """Run such a command, which succeeds, and return its output."""
    return lambda *given, status=DONE, **options: said(*words(*given, **options), status=status)


@pytest.fixture
def fails(words, refused):
    """Run such a command, which is refused, and return its message."""
    return lambda status, *given, **options: refused(status, *words(*given, **options))


def stored(tmp_path, **attributes):
    return embstore.Cache(tmp_path / "cache").find_one(attributes)


# -- embed ------------------------------------------------------------------------------------


def test_embed_then_again(tmp_path, sounds, call, models):
    first, counts, where = call("embed", sounds, "--suffix", ".wav")
    assert first.startswith("miss: no store has this config")
    assert counts.startswith("3 samples: 0 hits, ")
    assert {" 0 stale", " 3 encoded", " 0 failed"} <= set(counts.split(","))
    store = stored(tmp_path)
    assert sorted(store) == ["cat/1:cat", "dog/1:dog", "dog/2:dog"]
    assert store.config["dataset"] == "pets"
    assert str(store.path) in where
    models.encoded.clear()
    assert call("embed", sounds, "--suffix", ".wav")[0] == "hit: 3 stored, 0 missing, 0 stale"
    assert models.encoded == []


def test_several_suffixes_and_a_pattern(tmp_path, sounds, call, fails):
    both = ["--suffix", ".wav", "--suffix", ".txt"]
    call("embed", sounds, *both, "--pattern", "{class}/{file_id}.*")
    assert sorted(stored(tmp_path)) == ["1:cat", "1:dog", "2:dog", "note:cat"]
    write(sounds / "cat" / "1.txt", b"one key, two files")
    assert "'cat/1:cat'" in fails(WRONG, "embed", sounds, *both)
    assert len(stored(tmp_path)) == 4


def test_options_of_the_encoder_reach_it(sounds, call, models):
    options = {
        **{"--revision": "v2", "--id": "mine", "--fields": "mean, cls,", "--dtype": "float16", "--duration": "2.5"},
        **{"--max-tokens": "12", "--modality": "audio", "--compute-dtype": "bfloat16", "--preprocess-version": "3"},
        "--device": "cpu",
    }
    call("why", sounds, *(word for pair in options.items() for word in pair), model="tiny/ast", status=PARTLY)
    (asked,) = models.asked
    assert asked == {
        **{"model": "tiny/ast", "revision": "v2", "id": "mine", "fields": ["mean", "cls"], "dtype": "float16"},
        **{"duration": 2.5, "max_tokens": 12, "modality": "audio", "compute_dtype": "bfloat16"},
        **{"preprocess_version": 3, "device": "cpu"},
    }


def test_what_is_not_given_is_left_to_the_encoder(sounds, call, models):
    """Defaults stand in one place each, and are the same there."""
    call("why", sounds, status=PARTLY)
    (asked,) = models.asked
    del asked["model"]
    defaults = inspect.signature(embstore.from_pretrained).parameters
    assert asked == {name: defaults[name].default for name in asked}


def test_failures_are_listed(tmp_path, sounds, call):
    write(sounds / "dog" / "3.wav", b"")
    lines = call("embed", sounds, "--suffix", ".wav", status=PARTLY)
    assert "3 encoded" in lines[1]
    assert f"  dog/3:dog: it is empty ({sounds / 'dog' / '3.wav'})" in lines
    lines = call("embed", sounds, "--suffix", ".wav", status=PARTLY)  # and again
    assert {"4 samples: 3 hits", " 0 encoded", " 1 failed"} <= set(lines[1].split(","))
    write(sounds / "dog" / "3.wav", b"growl")
    call("embed", sounds, "--suffix", ".wav")


def test_rows_whose_sample_is_gone(tmp_path, sounds, call):
    call("embed", sounds, "--suffix", ".wav")
    (sounds / "dog" / "1.wav").unlink()
    assert "1 rows whose sample is gone: dog/1:dog" in "\n".join(call("embed", sounds, "--suffix", ".wav"))
    assert len(stored(tmp_path)) == 3
    call("embed", sounds, "--suffix", ".wav", "--delete-vanished")
    assert len(stored(tmp_path)) == 2


def test_batches(sounds, call, models):
    sizes = []
    models.during = lambda items: sizes.append(len(items))
    call("embed", sounds, "--batch-size", "2", "--workers", "1", "-q")
    assert sizes == [2, 2]


@pytest.mark.parametrize("tty", [True, False])
@pytest.mark.parametrize("quiet", ["-q", "--quiet", None])
def test_a_bar_for_people_alone(sounds, words, capsys, monkeypatch, tty, quiet):
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: tty)
    assert main([str(word) for word in words("embed", sounds, *([quiet] if quiet else []))]) == DONE
    assert ("4/4" in (err := capsys.readouterr().err)) is (tty and quiet is None)
    assert "4/4" in err or err == ""


def test_a_field_more(tmp_path, sounds, call):
    call("embed", sounds, "--fields", "mean")
    out = "\n".join(call("embed", sounds, "--fields", "mean,cls"))
    assert "field miss: no cls yet" in out
    assert "fields added: cls" in out
    assert set(stored(tmp_path).fields) == {"mean", "cls"}


# -- shards -----------------------------------------------------------------------------------

OPTIONS = {
    **{"revision": None, "id": None, "dtype": "float32", "duration": None, "max_tokens": None, "modality": None},
    **{"compute_dtype": "float32", "preprocess_version": 1},
}


def test_shards_and_their_merge(tmp_path, sounds, call, said, refused):
    for i in range(3):
        call("embed", sounds, "--shard", f"{i}/3")
    config = {**Models()("tiny", **OPTIONS).config, "dataset": "pets"}
    path = embstore.Cache(tmp_path / "cache").path_of(config)
    parts = [part_path(path, (i, 3)) for i in range(3)]
    assert all(part.is_dir() for part in parts)
    assert said("merge", path, *parts) == [f"{path}: 4 rows added, 0 skipped"]
    assert len(stored(tmp_path)) == 4
    assert "are stored already" in refused(ANOTHER, "merge", path, *parts)
    (line,) = said("merge", "--if-exists", "skip", path, parts[0])
    assert re.fullmatch(r".*: 0 rows added, \d skipped", line)
    call("embed", sounds, "--shard", "0/3")


def test_shards_renew_what_has_changed(tmp_path, sounds, call, said):
    call("embed", sounds)
    path = stored(tmp_path).path
    write(sounds / "dog" / "1.wav", b"growl!")
    for i in range(2):
        call("embed", sounds, "--shard", f"{i}/2")
    parts = [part_path(path, (i, 2)) for i in range(2)]
    assert said("merge", path, *parts, "--if-exists", "replace") == [
        f"{path}: 1 rows added, 1 of them in place of others, 0 skipped"
    ]
    assert call("embed", sounds)[0].startswith("hit: 4 stored")


@pytest.mark.parametrize("shard", ["", "1", "/", "1/", "/4", "a/b", "0/4/5", "0-4", "0,4", "1.0/4", "-/4"])
def test_what_is_no_shard(tmp_path, sounds, fails, shard):
    assert "--shard: expected I/N" in fails(WRONG, "embed", sounds, "--shard", shard).replace("'", "")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("shard", ["4/4", "5/4", "0/0", "0/-1", "-1/4"])
def test_a_shard_that_there_is_not(tmp_path, sounds, fails, shard):
    for words in (["--shard", shard], [f"--shard={shard}"]):
        said = fails(WRONG, "embed", sounds, *words)
        assert re.match(r"embstore: expected shard \(i, n\).* 0 <= i < n, found ", said)
        assert not (tmp_path / "cache").exists()


# -- tables -----------------------------------------------------------------------------------


def test_a_table_of_texts(tmp_path, texts, call):
    options = ["--text-column", "says", "--id-column", "id", "--class-column", "label"]
    call("embed", texts, *options)
    assert sorted(stored(tmp_path)) == ["1:dog", "2:cat", "3"]
    call("check", texts, *options)


def test_a_table_of_files(tmp_path, sounds, call):
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "files.TSV").write_text("file\tlabel\ndog/1.wav\twuff\ncat/1.wav\tmiau\n")
    call("embed", lists / "files.TSV", "--path-column", "file", "--class-column", "label", "--root", sounds)
    assert sorted(stored(tmp_path)) == ["cat/1:miau", "dog/1:wuff"]


def test_a_parquet_table(tmp_path, call):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    pandas.DataFrame({"n": [1, 2], "t": ["a", "bb"]}).to_parquet(tmp_path / "t.parquet")
    call("embed", tmp_path / "t.parquet", "--text-column", "t", "--id-column", "n")
    assert sorted(stored(tmp_path)) == ["1", "2"]


def test_columns_of_a_table(tmp_path, call, fails):
    """They are stored beside the rows, and compared on hits."""
    words = ["--text-column", "says", "--id-column", "id", "--column", "split", "--column", "who"]
    for split in ("train", "test"):
        (tmp_path / "t.csv").write_text(f"id,says,split,who\n1,wuff,{split},Rex\n2,miau,{split},Tom\n")
        call("embed", tmp_path / "t.csv", *words)
        with stored(tmp_path) as store:
            view = store.select(keys=["1", "2"])
            assert view.column("split").tolist() == [split, split]
            assert view.column("who").tolist() == ["Rex", "Tom"]
            assert store.snapshot.record.rows == 2  # nothing was encoded again
    said = fails(ABSENT, "embed", tmp_path / "t.csv", *words, "--column", "nonsense")
    assert "no column 'nonsense'" in said


@pytest.mark.parametrize(
    ("options", "status", "reason"),
    [
        ([], WRONG, "expected either path="),
        (["--text-column", "says", "--path-column", "id"], WRONG, "expected either path="),
        (["--text-column", "says"], WRONG, "name a file_id column"),
        (["--text-column", "nonsense", "--id-column", "id"], ABSENT, "no column 'nonsense'"),
        (["--text-column", "says", "--id-column", "label"], WRONG, "'3'|'_'|empty|not a key"),
    ],
)
def test_a_table_that_does_not_fit(tmp_path, texts, fails, options, status, reason):
    assert re.search(reason, fails(status, "embed", texts, *options))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["sounds", "--text-column", "says"],
        ["sounds", "--class-column", "label"],
        ["sounds", "--column", "split"],
        ["sounds", "--root", "."],
        ["texts", "--suffix", ".wav"],
        ["texts", "--pattern", "{class}_*"],
        ["texts", "--pattern", ""],
    ],
    ids=" ".join,
)
def test_options_of_the_other_kind_of_source(sounds, texts, fails, options):
    kind, name, *more = options
    if kind == "texts":
        more += ["--text-column", "says", "--id-column", "id"]
    said = fails(WRONG, "embed", sounds if kind == "sounds" else texts, name, *more)
    assert said.startswith(f"embstore: {name} is for a ")


# -- data sets in their real layouts -----------------------------------------------------------


@pytest.fixture
def vegas(tmp_path, models):
    """Return the words of `embed` on a folder in VEGAS's layout."""
    pytest.importorskip("torch")
    for name in ("dog", "drum"):
        for i in range(1, 7):
            write(tmp_path / "VEGAS" / name / "audios" / f"video_{i:05d}.wav", b"x" * i)
    return ["embed", tmp_path / "VEGAS", "--dataset", "vegas", "--model", "tiny", "--cache", tmp_path / "cache"]


def test_a_data_set(tmp_path, vegas, said):
    said(*vegas, "--classes", "dog", "--samples-per-class", 3)
    assert {key.rpartition(":")[2] for key in stored(tmp_path)} == {"dog"}
    assert len(stored(tmp_path)) == 3
    assert "9 encoded" in said(*vegas)[1]
    assert "whose sample is gone" not in "\n".join(said(*vegas, "--classes", "drum"))
    said("why", *vegas[1:])


def test_nodes_of_a_data_set_share_no_sample(tmp_path, vegas, models, said):
    for node in range(3):
        said(*vegas, "--nodes", 3, "--node", node)
    assert len(models.encoded) == len(stored(tmp_path)) == 12


@pytest.mark.parametrize(
    ("options", "status", "reason"),
    [
        (["--name", "x"], WRONG, "a data set has its own"),
        (["--pattern", "{class}_*"], WRONG, "--pattern is for a folder"),
        (["--classes", "unicorn"], ABSENT, "unicorn"),
        (["--classes", "dog", "--delete-vanished"], WRONG, "would delete"),
        (["--nodes", "3", "--node", "7"], ABSENT, "7"),
    ],
    ids=str,
)
def test_what_a_data_set_refuses(tmp_path, vegas, refused, options, status, reason):
    assert reason in refused(status, *vegas, *options)
    assert not list(tmp_path.glob("cache/*.zarr"))


# -- why --------------------------------------------------------------------------------------


def test_why(tmp_path, sounds, call):
    assert "the cache is empty" in "\n".join(call("why", sounds, status=PARTLY))
    assert not (tmp_path / "cache").exists()
    call("embed", sounds)
    assert call("why", sounds)[0].startswith("hit: ")
    assert call("why", sounds, "--duration", "10", status=PARTLY)[2:] == ["  duration  wanted 10  stored nothing"]
    said = "\n".join(call("why", sounds, name="others", status=PARTLY))
    assert "dataset  wanted 'others'  stored 'pets'" in said
    assert call("why", sounds, "--fields", "mean,cls", status=PARTLY)[0].startswith("field miss: ")


def test_why_does_not_look_at_the_samples(tmp_path, sounds, call):
    call("embed", sounds)
    call("why", tmp_path / "nowhere")


# -- check ------------------------------------------------------------------------------------


def test_check(tmp_path, sounds, call, models):
    call("embed", sounds)
    models.encoded.clear()
    assert call("check", sounds) == [
        "4 samples encoded again: the cache still holds",
        "  mean: largest difference 0, tolerance 0.0001",
    ]
    assert len(models.encoded) == 4
    assert call("check", sounds, "-n", "2")[0].startswith("2 samples")
    models.factor = 1.01
    assert "the encoder gives other values than are stored" in call("check", sounds, status=PARTLY)[0]
    call("check", sounds, "--tolerance", "0.05")


def test_check_without_a_store(tmp_path, sounds, fails):
    assert fails(ABSENT, "check", sounds).startswith("embstore: miss: no store has this config")
    assert not (tmp_path / "cache").exists()


def test_check_of_nothing_that_is_stored(sounds, call, fails):
    call("embed", sounds)
    for path in sounds.rglob("*.*"):
        write(path, b"another")
        os.utime(path)
    assert "content that it has now" in fails(WRONG, "check", sounds)


@pytest.mark.parametrize("options", [["-n", "0"], ["-n", "-1"], ["-n", "x"], ["--tolerance", "x"]], ids=" ".join)
def test_checks_that_make_no_sense(sounds, call, fails, options):
    call("embed", sounds)
    fails(WRONG, "check", sounds, *options)


# -- for programs -----------------------------------------------------------------------------


def test_what_programs_are_told(tmp_path, sounds, call, models):
    def told(command, *options, status=DONE):
        (answer,) = call(command, sounds, "--json", *options, status=status)
        return answer

    write(sounds / "dog" / "3.wav", b"")
    answer = told("embed", status=PARTLY)
    counts = {"samples": 5, "hits": 0, "encoded": 4, "stale": 0, "rows": 4, "nbytes": 32}
    assert {name: answer[name] for name in counts} == counts
    assert answer["ok"] is False
    failed = {"key": "dog/3:dog", "where": str(sounds / "dog" / "3.wav"), "reason": "it is empty"}
    assert answer["failed"] == [failed]
    assert answer["path"] == str(stored(tmp_path).path)
    assert answer["config"]["dataset"] == "pets"
    why = {"hit": False, "missing_fields": [], "nearest": None, "differences": []}
    assert told("why") == {**why, "hit": True, "path": answer["path"]}
    missed = told("why", "--duration", "10", status=PARTLY)
    differences = [{"name": "duration", "wanted": 10}]  # nothing is stored of that name
    assert missed == {**why, "path": missed["path"], "nearest": answer["path"], "differences": differences}
    assert told("why", "--fields", "mean,cls", status=PARTLY)["missing_fields"] == ["cls"]
    report = told("check")
    assert (report["ok"], report["differences"], len(report["keys"])) == (True, {"mean": 0.0}, 4)
    models.factor = 2
    assert told("check", "-n", "1", status=PARTLY)["ok"] is False


# -- how it ends ------------------------------------------------------------------------------


STATUSES = {  # `why` looks for a config, whatever that says
    "embed": {"model": ABSENT, "cache": AGAIN, "name": WRONG, "source": WRONG},
    "why": {"model": ABSENT, "cache": PARTLY, "name": PARTLY, "source": DONE},
    "check": {"model": ABSENT, "cache": ABSENT, "name": ABSENT, "source": WRONG},
}


@pytest.mark.parametrize("command", STATUSES)
@pytest.mark.parametrize("kind", ["model", "cache", "name", "source"])
def test_errors_are_one_line(tmp_path, sounds, call, fails, command, kind):
    (tmp_path / "file").write_text("")
    if kind == "source":
        call("embed", sounds)
    options = {"model": "nonsense", "cache": tmp_path / "file", "name": " "}
    given = [command, tmp_path / "nowhere" if kind == "source" else sounds]
    options = {name: value for name, value in options.items() if name == kind}
    status = STATUSES[command][kind]
    if status in (DONE, PARTLY):
        call(*given, **options, status=status)
    else:
        assert fails(status, *given, **options).startswith("embstore: ")


@pytest.mark.parametrize(
    ("error", "status", "shown"),
    [
        (OSError("disk"), AGAIN, "disk"),
        (TimeoutError("slow"), AGAIN, "slow"),
        (FileNotFoundError("file"), ABSENT, "file"),
        (ValueError("value"), WRONG, "value"),
        (ImportError("pip install 'embstore[audio]'"), ABSENT, "pip install 'embstore[audio]'"),
        (errors.DecodeError("it is no sound"), WRONG, "it is no sound"),
        (found := errors.WeightsChangedError(Path("model")), ANOTHER, str(found)),
        (found := errors.CorruptStoreError(Path("file"), "it is short"), BROKEN, str(found)),
        (ValueError(), WRONG, "ValueError"),
        (ValueError("first\nsecond \x1b[31m"), WRONG, "first\\nsecond \\x1b[31m"),
    ],
    ids=repr,
)
def test_errors_of_the_encoder(sounds, fails, models, error, status, shown):
    models.during = failing(error)
    assert fails(status, "embed", sounds) == f"embstore: {shown}"


def failing(error):
    def fail(items):
        raise error

    return fail


def test_every_status_is_explained(capsys):
    """And every error of the library has the status that its place in the tree of errors asks for."""
    main(["--help"])
    text = capsys.readouterr().out
    for status, meaning in EXITS.items():
        assert f"{status:>3}  {meaning}" in text
    tree = re.findall(r"^\|   [|`]-- (\w+)|^[|`]-- (.*)$", errors.__doc__.replace("    |", "|"), flags=re.MULTILINE)
    branch, expected = "", {}
    branches = {
        "the call is wrong": {WRONG, ANOTHER},  # KeysExistError: something is there already
        "it is not there": {ABSENT},
        "it differs from the expected one": {ANOTHER},
        "the store changed": {AGAIN},
        "the machine refuses": {AGAIN, ABSENT},  # MissingLibraryError: a library is not there
        "the sample is bad": {WRONG},
        "the file to import is bad": {BROKEN},
        "CorruptStoreError": {BROKEN},
    }
    for leaf, line in tree:
        branch = line or branch
        if leaf:
            (expected[leaf],) = (allowed for start, allowed in branches.items() if branch.startswith(start))
    assert len(expected) > 30
    for name, allowed in expected.items():
        error = getattr(errors, name).__new__(getattr(errors, name))
        assert status_of(error) in allowed, name


def test_what_is_a_fault_of_the_program_is_shown_whole(sounds, call, models):
    models.during = failing(ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        call("embed", sounds)


def test_interrupted(tmp_path, sounds, call, fails, models):
    def interrupt(items):
        if models.encoded:
            raise KeyboardInterrupt

    models.during = interrupt
    said = fails(INTERRUPTED, "embed", sounds, "--batch-size", "1", "--workers", "1")
    assert said == "embstore: interrupted: 1 row is stored; run it again to go on"
    assert len(stored(tmp_path)) == 1
    models.during = lambda items: None
    models.encoded.clear()
    call("embed", sounds)
    assert len(models.encoded) == 3


def test_interrupted_where_nothing_goes_on(sounds, call, fails, models):
    call("embed", sounds)
    models.during = failing(KeyboardInterrupt)
    assert fails(INTERRUPTED, "check", sounds) == "embstore: interrupted"


def test_interrupted_while_modules_are_imported(monkeypatch, capsys):
    monkeypatch.setattr("embstore.cli.main", lambda: failing(KeyboardInterrupt)(None))
    assert embstore.__main__.main() == INTERRUPTED
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["nonsense"],
        ["embed"],
        ["embed", "folder", "--name", "x", "--model", "y"],
        ["embed", "folder", "--model", "y", "--cache", "c"],
        ["embed", "folder", "--name", "x", "--model", "y", "--cache", "c", "--batch-size", "many"],
        ["embed", "folder", "--name", "x", "--model", "y", "--cache", "c", "--modality", "smell"],
        ["embed", "folder", "--name", "x", "--model", "y", "--cache", "c", "--nonsense"],
        ["embed", "folder", "--name", "x", "--model", "y", "--cache", "c", "--fields", ","],
        ["embed", "", "--name", "x", "--model", "y", "--cache", "c"],
        ["embed", "folder", "--name", "x", "--model", "y", "--cache", ""],
        ["check", "folder", "--name", "x", "--model", "y", "--cache", "c", "--shard", "0/2"],
        ["merge"],
        ["merge", "dest"],
        ["merge", "dest", "part", "--if-exists", "nonsense"],
    ],
    ids=" ".join,
)
def test_words_that_make_no_sense(given, capsys, models):
    assert main(given) == WRONG
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("Usage: embstore")
    assert models.asked == []


@pytest.mark.parametrize("options", [["--batch-size", "0"], ["--batch-size", "-2"], ["--workers", "-1"]], ids=" ".join)
def test_numbers_that_make_no_sense(sounds, fails, options):
    fails(WRONG, "embed", sounds, *options)


def commands():
    """Return all commands with the words that call them, those of groups too."""
    from embstore.cli import group

    found, left = {}, [((), group)]
    while left:
        words, command = left.pop()
        found[" ".join(words)] = command
        if isinstance(command, click.Group):
            context = click.Context(command)
            left += [((*words, name), command.get_command(context, name)) for name in command.list_commands(context)]
    return found


EXPECTED_HELP = {
    "": [command for command in commands() if " " not in command],
    "embed": ["--shard I/N", "--fields", "--delete-vanished", "--batch-size N", "--pattern", "{class}_*.flac"],
    "why": ["--duration SECONDS", "--name TEXT", "--cache PATH"],
    "check": ["--tolerance", "-n N"],
    "merge": ["DEST PARTS...", "[error|skip|replace]"],
    "cache": ["clear", "ls", "prune", "stats"],
    "cache prune": ["--max-size BYTES", "--unused-for TIME", "--dry-run", "--yes"],
}


@pytest.mark.parametrize("command", commands())
def test_help(command, said):
    for option in ("--help", "-h"):
        text = " ".join(" ".join(said(*command.split(), option)).split())
        assert text.startswith(" ".join(["Usage: embstore", *command.split()]))
        assert command in ("", "cache") or "--verbose" in text
        assert all(part in text for part in EXPECTED_HELP.get(command, []))


def test_each_option_and_command_says_what_it_is_for():
    for words, command in commands().items():
        assert command.help, words
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, (words, parameter.name)
                assert parameter.help.endswith((".", ")")), (words, parameter.name)


def test_commands_that_answer_programs_do():
    """All that print more than a word or what they are told to write."""
    without = {words for words, command in commands().items() if "as_json" not in {p.name for p in command.params}}
    assert without == {"", "cache", "completion", "export", "plot", "explore"}


# -- how much it says -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "level"),
    [([], "WARNING"), (["-v"], "INFO"), (["-vv"], "DEBUG"), (["-v", "--verbose"], "DEBUG"), (["-vvvv"], "DEBUG")],
    ids=str,
)
def test_levels(sounds, call, options, level):
    call("why", sounds, *options, status=PARTLY)
    assert logging.getLevelName(logging.getLogger("embstore").level) == level


SCRIPT = """
import sys
import embstore.encoders
from embstore.cli import main
from tests.cli.test_cli import Models

models = embstore.encoders.from_pretrained = Models()
{more}
sys.exit(main(sys.argv[1:]))
"""


def run(*start, env=None):
    """Run the command in a process of its own."""
    start = [sys.executable, *map(str, start)]
    return subprocess.run(
        start, capture_output=True, text=True, timeout=300, cwd=ROOT, env={**os.environ, **(env or {})}
    )


def test_what_a_process_says(sounds, words):
    def run_with_models(*given):
        return run("-c", SCRIPT.format(more=""), *words("embed", sounds, *given))

    write(sounds / "dog" / "3.wav", b"")
    done = run_with_models()
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["pets: 1 of 5 samples failed; the result lists them"]
    assert f"  dog/3:dog: it is empty ({sounds / 'dog' / '3.wav'})" in done.stdout
    assert "4 encoded" in done.stdout
    (sounds / "dog" / "3.wav").unlink()
    done = run_with_models("-v")
    assert done.returncode == 0
    assert "pets: hit: 4 stored, 0 missing, 0 stale" in done.stderr.splitlines()
    done = run_with_models("--batch-size", "0")
    assert (done.returncode, done.stdout) == (WRONG, "")
    assert done.stderr == "embstore: expected batch_size from 1, found 0\n"
    done = run_with_models("--batch-size", "0", "-v")
    assert done.returncode == WRONG
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1] == "embstore: expected batch_size from 1, found 0"


def test_a_process_that_is_interrupted(sounds, words, tmp_path):
    """While the second sample is encoded, when the first one is not yet stored."""
    code = SCRIPT.format(more=SECOND)
    process = started(code, *words("embed", sounds, "--batch-size", "1"), text=True, cwd=ROOT)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err == "embstore: interrupted: 1 row is stored; run it again to go on\n"
    assert len(stored(tmp_path)) == 1


SECOND = """
import time
def during(items):
    if models.encoded:
        reached()
        time.sleep(600)
models.during = during
"""


def script():
    """Return what starts the installed command: the script that pip made, or what it would have in it."""
    made = Path(sys.executable).with_name("embstore")
    with (ROOT / "pyproject.toml").open("rb") as file:
        module, _, name = tomllib.load(file)["project"]["scripts"]["embstore"].partition(":")
    command = f"import sys; from {module} import {name}; sys.exit({name}())"
    return [str(made)] if made.exists() else [sys.executable, "-c", command]


@pytest.mark.parametrize("how", ["module", "script"])
def test_the_module_and_the_script_are_the_command(tmp_path, how):
    start = [sys.executable, "-m", "embstore"] if how == "module" else script()

    def started(*words):
        return subprocess.run([*start, *words], capture_output=True, text=True, timeout=120, cwd=ROOT)

    done = started("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: embstore ")
    done = started("--version")
    assert (done.returncode, done.stdout) == (0, f"embstore {embstore.__version__}\n")
    done = started()
    assert (done.returncode, done.stdout) == (WRONG, "")
    assert done.stderr.startswith("Usage: embstore ")
    a = str(tmp_path / "a")
    with embstore.open(a, "w-", config={}) as store:
        store.append(["1:c"], np.ones((1, 2), np.float32))
    done = started("merge", str(tmp_path / "b"), a, a)
    assert (done.returncode, done.stdout) == (WRONG, "")
    assert done.stderr == "embstore: 1 key(s) occur more than once: '1:c'\n"


# -- the page ---------------------------------------------------------------------------------

PAGE = ROOT / "docs" / "reference" / "command-line.md"


class Shell:
    """As much of one as the page needs: variables, patterns, one pipe, and the last status."""

    def __init__(self, capsys, monkeypatch):
        self.capsys, self.monkeypatch = capsys, monkeypatch
        self.variables, self.status = {"?": "0"}, 0

    def run(self, line):
        """Return what a line prints."""
        line = line.partition("   #")[0].strip()
        if found := re.fullmatch(r"(\w+)=(?:\"(.*)\"|\$\(ls -d (.*)\))", line):
            name, text, pattern = found.groups()
            self.variables[name] = text if text is not None else " ".join(map(str, Path().glob(pattern)))
            return ""
        line = re.sub(r"\$(\w+|\?)", lambda found: self.variables[found[1]], line)
        typed = ""
        for part in line.split(" | "):
            stdin = io.TextIOWrapper(io.BytesIO(typed.encode()))
            self.monkeypatch.setattr(sys, "stdin", stdin)
            program, *words = shlex.split(part)
            if program == "echo":
                return " ".join(words) + "\n"
            assert program == "embstore", line
            self.variables["?"] = str(main(words))
            printed = self.capsys.readouterr()
            typed = printed.out + printed.err
        return typed


def test_the_page_shows_what_is_printed(tmp_path, monkeypatch, capsys):
    """Line by line; "…" stands for what differs from machine to machine, and a fingerprint for another."""
    fingerprint = re.compile(r"(?<=-)[0-9a-f]{16}(?=\.zarr)")
    monkeypatch.chdir(tmp_path)
    for name, size in {"cat/1.wav": 1644, "dog/1.wav": 3244, "dog/2.wav": 4844}.items():
        write(tmp_path / "recordings" / name, bytes(size))

    def from_pretrained(model, *, fields, duration, **options):
        return FunctionEncoder(
            lambda items: {"mean": np.array([[len(item) / 1000, 1, 1, 1] for item in items], np.float32)},
            config={"encoder": {"id": model}, "preprocessing": {"duration": duration}},
            fields={"mean": FieldSpec(shape=(4,))},
        )

    monkeypatch.setattr(embstore.encoders, "from_pretrained", from_pretrained)
    shell, ran = Shell(capsys, monkeypatch), set()
    for block in re.findall(r"^```console\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE):
        for line, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, flags=re.MULTILINE):
            if "completion" in line:
                continue  # tests/cli/test_caches.py has bash do that
            said = shell.run(line)
            ran |= set(re.findall(r"embstore (cache \w+|\w+)", line))
            expected = ".*".join(map(re.escape, fingerprint.sub("x", shown).split("…")))
            assert re.fullmatch(expected, fingerprint.sub("x", said), flags=re.DOTALL), (
                f"$ {line}\n{said}\nis not\n{shown}"
            )
    text = PAGE.read_text()
    for words, command in commands().items():
        if words and not isinstance(command, click.Group):
            assert words in ran or f"embstore {words}" in text, words


def test_the_page_has_every_status():
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", PAGE.read_text(), flags=re.MULTILINE)
    assert {int(status): meaning for status, meaning in rows} == EXITS


def test_the_page_names_options_that_there_are():
    known = {option for command in commands().values() for parameter in command.params for option in parameter.opts}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", PAGE.read_text())) - {"--help"} <= known


# -- with a real model ------------------------------------------------------------------------


needs_models = pytest.mark.skipif(
    not (find_spec("torch") and find_spec("transformers")), reason="needs torch and transformers"
)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests._helpers import tiny_models

    folder = tmp_path_factory.mktemp("models") / "bert"
    tiny_models.text(folder)
    return folder


@needs_models
def test_from_texts_to_a_merged_store(tmp_path, texts, bert):
    def command(*words):
        done = run("-m", "embstore", *words, env={"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"})
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout

    what = [texts, "--name", "pets", "--model", bert, "--cache", tmp_path / "cache", "--device", "cpu"]
    what += ["--text-column", "says", "--id-column", "id", "--class-column", "label"]
    what += ["--fields", "mean,last_hidden_state"]
    for i in range(2):
        assert command("embed", *what, "--shard", f"{i}/2")[0] == DONE
    parts = sorted((tmp_path / "cache").glob("*.part-?-of-2"))
    assert len(parts) == 2
    dest = parts[0].with_name(parts[0].name.partition(".part-")[0])
    assert command("merge", dest, *parts) == (DONE, f"{dest}: 3 rows added, 0 skipped\n")
    status, out = command("embed", *what)
    assert status == DONE
    assert out.startswith("hit: 3 stored")
    status, out = command("check", *what)
    assert status == DONE
    assert out.startswith("3 samples encoded again: the cache still holds")
    status, out = command("why", *what, "--max-tokens", "5")
    assert status == PARTLY
    assert re.search(r"preprocessing\.\S+ +wanted 5 +stored \d+", out)
    store = embstore.open(dest)
    assert set(store.fields) == {"mean", "last_hidden_state"}
    assert sorted(store) == ["1:dog", "2:cat", "3"]


@needs_models
@pytest.mark.parametrize(
    ("options", "status"),
    [
        ("--fields nonsense", ABSENT),
        ("--dtype nonsense", WRONG),
        ("--compute-dtype nonsense", WRONG),
        ("--duration 5", WRONG),
        ("--modality audio", WRONG),
        ("--max-tokens -1", WRONG),
        ("--max-tokens 100000", WRONG),
        ("--device nonsense", WRONG),
        ("--device cuda:77", WRONG),
    ],
)
def test_options_that_a_model_refuses(tmp_path, texts, bert, options, status, capsys):
    what = ["embed", texts, "--name", "pets", "--model", bert, "--cache", tmp_path / "cache"]
    what += ["--text-column", "says", "--id-column", "id", *options.split()]
    assert main([*map(str, what)]) == status
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert "--device" in options or not (tmp_path / "cache").exists()

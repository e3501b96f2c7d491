"""The command `embstore`: what it does, what it says, and how it ends."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import embstore
import embstore.encoders
from embstore import FieldSpec, errors
from embstore.cli import main
from embstore.encoders import FunctionEncoder
from embstore.pipeline import part_path

ROOT = Path(__file__).parents[1]


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
        return FunctionEncoder(
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
def call(tmp_path, models):
    """Run a command on a source, with a name, a model and a cache."""

    def call(command, source, *more, name="pets", model="tiny", cache=None):
        cache = cache or tmp_path / "cache"
        return main([command, str(source), "--name", name, "--model", model, "--cache", str(cache), *map(str, more)])

    return call


def stored(tmp_path, **attributes):
    return embstore.Cache(tmp_path / "cache").find_one(attributes)


# -- embed ------------------------------------------------------------------------------------


def test_embed_then_again(tmp_path, sounds, call, models, capsys):
    assert call("embed", sounds, "--suffix", ".wav") == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0].startswith("miss: no store has this config")
    assert lines[1].startswith("3 samples: 0 hits, ")
    assert {" 0 stale", " 3 encoded", " 0 failed"} <= set(lines[1].split(","))
    store = stored(tmp_path)
    assert sorted(store) == ["cat/1:cat", "dog/1:dog", "dog/2:dog"]
    assert store.config["dataset"] == "pets"
    assert str(store.path) in lines[2]
    assert said.err == ""
    models.encoded.clear()
    assert call("embed", sounds, "--suffix", ".wav") == 0
    assert models.encoded == []
    assert capsys.readouterr().out.splitlines()[0] == "hit: 3 stored, 0 missing, 0 stale"


def test_several_suffixes_and_a_pattern(tmp_path, sounds, call, capsys):
    both = ["--suffix", ".wav", "--suffix", ".txt"]
    assert call("embed", sounds, *both, "--pattern", "{class}/{file_id}.*") == 0
    assert sorted(stored(tmp_path)) == ["1:cat", "1:dog", "2:dog", "note:cat"]
    write(sounds / "cat" / "1.txt", b"one key, two files")
    assert call("embed", sounds, *both) == 2
    assert "'cat/1:cat'" in capsys.readouterr().err
    assert len(stored(tmp_path)) == 4


def test_options_of_the_encoder_reach_it(sounds, call, models):
    options = {
        **{"--revision": "v2", "--id": "mine", "--fields": "mean, cls,", "--dtype": "float16", "--duration": "2.5"},
        **{"--max-tokens": "12", "--modality": "audio", "--compute-dtype": "bfloat16", "--preprocess-version": "3"},
        "--device": "cpu",
    }
    assert call("why", sounds, *(word for pair in options.items() for word in pair), model="tiny/ast") == 1
    (asked,) = models.asked
    assert asked == {
        **{"model": "tiny/ast", "revision": "v2", "id": "mine", "fields": ["mean", "cls"], "dtype": "float16"},
        **{"duration": 2.5, "max_tokens": 12, "modality": "audio", "compute_dtype": "bfloat16"},
        **{"preprocess_version": 3, "device": "cpu"},
    }


def test_what_is_not_given_is_left_to_the_encoder(sounds, call, models):
    """Defaults stand in one place each, and are the same there."""
    import inspect

    call("why", sounds)
    (asked,) = models.asked
    defaults = inspect.signature(embstore.from_pretrained).parameters
    assert {name: value for name, value in asked.items() if name != "model"} == {
        name: defaults[name].default for name in asked if name != "model"
    }


def test_failures_are_listed(tmp_path, sounds, call, capsys):
    write(sounds / "dog" / "3.wav", b"")
    assert call("embed", sounds, "--suffix", ".wav") == 1
    out = capsys.readouterr().out
    assert "3 encoded" in out
    assert f"  dog/3:dog: it is empty ({sounds / 'dog' / '3.wav'})" in out.splitlines()
    assert call("embed", sounds, "--suffix", ".wav") == 1  # and again
    assert {"4 samples: 3 hits", " 0 encoded", " 1 failed"} <= set(capsys.readouterr().out.splitlines()[1].split(","))
    write(sounds / "dog" / "3.wav", b"growl")
    assert call("embed", sounds, "--suffix", ".wav") == 0


def test_rows_whose_sample_is_gone(tmp_path, sounds, call, capsys):
    call("embed", sounds, "--suffix", ".wav")
    (sounds / "dog" / "1.wav").unlink()
    assert call("embed", sounds, "--suffix", ".wav") == 0
    assert "1 rows whose sample is gone: dog/1:dog" in capsys.readouterr().out
    assert len(stored(tmp_path)) == 3
    assert call("embed", sounds, "--suffix", ".wav", "--delete-vanished") == 0
    assert len(stored(tmp_path)) == 2


def test_batches(sounds, call, models):
    sizes = []
    models.during = lambda items: sizes.append(len(items))
    call("embed", sounds, "--batch-size", "2", "--workers", "1", "-q")
    assert sizes == [2, 2]


@pytest.mark.parametrize("tty", [True, False])
@pytest.mark.parametrize("quiet", ["-q", "--quiet", None])
def test_a_bar_for_people_alone(sounds, call, monkeypatch, tty, quiet):
    pytest.importorskip("tqdm")
    asked = {}
    own = embstore.pipeline.embed

    def embed(*arguments, **options):
        asked.update(options)
        return own(*arguments, **{**options, "progress": None})

    monkeypatch.setattr("embstore.pipeline.embed", embed)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: tty)
    assert call("embed", sounds, *([quiet] if quiet else [])) == 0
    assert asked["progress"] is (tty and quiet is None)


def test_a_field_more(tmp_path, sounds, call, capsys):
    assert call("embed", sounds, "--fields", "mean") == 0
    assert call("embed", sounds, "--fields", "mean,cls") == 0
    out = capsys.readouterr().out
    assert "field miss: no cls yet" in out
    assert "fields added: cls" in out
    assert set(stored(tmp_path).fields) == {"mean", "cls"}


# -- shards -----------------------------------------------------------------------------------


def test_shards_and_their_merge(tmp_path, sounds, call, capsys):
    for i in range(3):
        assert call("embed", sounds, "--shard", f"{i}/3") == 0
    config = {**Models()("tiny", **OPTIONS).config, "dataset": "pets"}
    path = embstore.Cache(tmp_path / "cache").path_of(config)
    parts = [part_path(path, (i, 3)) for i in range(3)]
    assert all(part.is_dir() for part in parts)
    capsys.readouterr()
    assert main(["merge", str(path), *map(str, parts)]) == 0
    assert capsys.readouterr().out == f"{path}: 4 rows added, 0 skipped\n"
    assert len(stored(tmp_path)) == 4
    assert main(["merge", str(path), *map(str, parts)]) == 2
    assert "are stored already" in capsys.readouterr().err
    assert main(["merge", "--if-exists", "skip", str(path), str(parts[0])]) == 0
    assert re.fullmatch(r".*: 0 rows added, \d skipped\n", capsys.readouterr().out)
    assert call("embed", sounds, "--shard", "0/3") == 0


def test_shards_renew_what_has_changed(tmp_path, sounds, call, capsys):
    call("embed", sounds)
    path = stored(tmp_path).path
    write(sounds / "dog" / "1.wav", b"growl!")
    for i in range(2):
        assert call("embed", sounds, "--shard", f"{i}/2") == 0
    parts = [part_path(path, (i, 2)) for i in range(2)]
    capsys.readouterr()
    assert main(["merge", str(path), *map(str, parts), "--if-exists", "replace"]) == 0
    assert capsys.readouterr().out.startswith(f"{path}: 1 rows added, 0 skipped")
    assert call("embed", sounds) == 0
    assert capsys.readouterr().out.startswith("hit: 4 stored")


OPTIONS = {
    **{"revision": None, "id": None, "dtype": "float32", "duration": None, "max_tokens": None, "modality": None},
    **{"compute_dtype": "float32", "preprocess_version": 1},
}


@pytest.mark.parametrize("shard", ["", "1", "/", "1/", "/4", "a/b", "0/4/5", "0-4", "0,4", "1.0/4", "-1/4"])
def test_what_is_no_shard(tmp_path, sounds, call, capsys, shard):
    with pytest.raises(SystemExit) as caught:
        call("embed", sounds, "--shard", shard)
    assert caught.value.code == 2
    assert "--shard" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("shard", ["4/4", "5/4", "0/0", "0/-1", "-1/4"])
def test_a_shard_that_there_is_not(tmp_path, sounds, call, capsys, shard):
    assert call("embed", sounds, f"--shard={shard}") == 2
    said = capsys.readouterr().err
    assert re.match(r"embstore: expected shard \(i, n\).* 0 <= i < n, found ", said)
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "cache").exists()


# -- tables -----------------------------------------------------------------------------------


def test_a_table_of_texts(tmp_path, texts, call):
    options = ["--text-column", "says", "--id-column", "id", "--class-column", "label"]
    assert call("embed", texts, *options) == 0
    assert sorted(stored(tmp_path)) == ["1:dog", "2:cat", "3:_"]
    assert call("check", texts, *options) == 0


def test_a_table_of_files(tmp_path, sounds, call):
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "files.TSV").write_text("file\tlabel\ndog/1.wav\twuff\ncat/1.wav\tmiau\n")
    options = ["--path-column", "file", "--class-column", "label", "--root", sounds]
    assert call("embed", lists / "files.TSV", *options) == 0
    assert sorted(stored(tmp_path)) == ["cat/1:miau", "dog/1:wuff"]


def test_a_parquet_table(tmp_path, call):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    pandas.DataFrame({"n": [1, 2], "t": ["a", "bb"]}).to_parquet(tmp_path / "t.parquet")
    assert call("embed", tmp_path / "t.parquet", "--text-column", "t", "--id-column", "n") == 0
    assert sorted(stored(tmp_path)) == ["1:_", "2:_"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "expected either path="),
        (["--text-column", "says", "--path-column", "id"], "expected either path="),
        (["--text-column", "says"], "name a file_id column"),
        (["--text-column", "nonsense", "--id-column", "id"], "there is no column 'nonsense'"),
        (["--text-column", "says", "--id-column", "label"], "'3'|'_'|empty|not a key"),
    ],
)
def test_a_table_that_does_not_fit(tmp_path, texts, call, capsys, options, reason):
    assert call("embed", texts, *options) == 2
    said = capsys.readouterr().err
    assert re.search(reason, said)
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["sounds", "--text-column", "says"],
        ["sounds", "--class-column", "label"],
        ["sounds", "--root", "."],
        ["texts", "--suffix", ".wav"],
        ["texts", "--pattern", "{class}_*"],
    ],
    ids=" ".join,
)
def test_options_of_the_other_kind_of_source(sounds, texts, call, options):
    kind, *more = options
    if kind == "texts":
        more += ["--text-column", "says", "--id-column", "id"]
    try:
        status = call("embed", sounds if kind == "sounds" else texts, *more)
    except SystemExit as error:
        status = error.code
    assert status == 2


# -- why --------------------------------------------------------------------------------------


def test_why(tmp_path, sounds, call, capsys):
    assert call("why", sounds) == 1
    assert "the cache is empty" in capsys.readouterr().out
    assert not (tmp_path / "cache").exists()
    call("embed", sounds)
    capsys.readouterr()
    assert call("why", sounds) == 0
    assert capsys.readouterr().out.startswith("hit: ")
    assert call("why", sounds, "--duration", "10") == 1
    assert capsys.readouterr().out.splitlines()[2:] == ["  duration  wanted 10  stored nothing"]
    assert call("why", sounds, name="others") == 1
    assert "dataset  wanted 'others'  stored 'pets'" in capsys.readouterr().out
    assert call("why", sounds, "--fields", "mean,cls") == 1
    assert capsys.readouterr().out.startswith("field miss: ")


def test_why_does_not_look_at_the_samples(tmp_path, sounds, call):
    call("embed", sounds)
    assert call("why", tmp_path / "nowhere") == 0


# -- check ------------------------------------------------------------------------------------


def test_check(tmp_path, sounds, call, models, capsys):
    call("embed", sounds)
    capsys.readouterr()
    models.encoded.clear()
    assert call("check", sounds) == 0
    assert capsys.readouterr().out.splitlines() == [
        "4 samples encoded again: the cache still holds",
        "  mean: largest difference 0, tolerance 0.0001",
    ]
    assert len(models.encoded) == 4
    assert call("check", sounds, "-n", "2") == 0
    assert capsys.readouterr().out.startswith("2 samples")
    models.factor = 1.01
    assert call("check", sounds) == 1
    assert "the encoder gives other values than are stored" in capsys.readouterr().out
    assert call("check", sounds, "--tolerance", "0.05") == 0


def test_check_without_a_store(tmp_path, sounds, call, capsys):
    assert call("check", sounds) == 2
    assert capsys.readouterr().err.startswith("embstore: miss: no store has this config")
    assert not (tmp_path / "cache").exists()


def test_check_of_nothing_that_is_stored(sounds, call, capsys):
    call("embed", sounds)
    for path in sounds.rglob("*.*"):
        write(path, b"another")
        os.utime(path)
    assert call("check", sounds) == 2
    assert "content that it has now" in capsys.readouterr().err


# -- merge ------------------------------------------------------------------------------------


def make(path, *keys, **config):
    with embstore.open(path, "w-", config={"encoder": "own", **config}) as store:
        store.append(keys, np.ones((len(keys), 2), np.float32))
    return str(path)


def test_merge(tmp_path, capsys):
    a, b = make(tmp_path / "a", "1:c", "2:c"), make(tmp_path / "b", "2:c", "3:c")
    dest = str(tmp_path / "dest.zarr")
    assert main(["merge", dest, a, b]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "embstore: 1 key(s) occur more than once: '2:c'\n"
    assert main(["merge", dest, a, b, "--if-exists", "skip"]) == 0
    assert capsys.readouterr().out == f"{dest}: 3 rows added, 1 skipped\n"
    assert len(embstore.open(dest)) == 3


@pytest.mark.parametrize("kind", ["another config", "no store", "nothing"])
def test_merge_of_what_does_not_fit(tmp_path, capsys, kind):
    a = make(tmp_path / "a", "1:c")
    odd = tmp_path / "odd"
    if kind == "another config":
        make(odd, "2:c", version=2)
    elif kind == "no store":
        odd.mkdir()
    dest = tmp_path / "dest"
    assert main(["merge", str(dest), a, str(odd)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("embstore: ")
    assert str(odd) in said
    assert not dest.exists()


# -- how it ends ------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["embed", "why", "check"])
@pytest.mark.parametrize("kind", ["model", "cache", "name", "source"])
def test_errors_are_one_line(tmp_path, sounds, call, capsys, command, kind):
    (tmp_path / "file").write_text("")
    options = {
        "model": {"model": "nonsense"},
        "cache": {"cache": tmp_path / "file"},
        "name": {"name": " "},
        "source": {},
    }[kind]
    source = tmp_path / "nowhere" if kind == "source" else sounds
    if kind == "source":
        call("embed", sounds)
    status = call(command, source, **options)
    said = capsys.readouterr()
    if command == "why" and kind != "model":
        assert status == (0 if kind == "source" else 1)  # it looks for a config, whatever that says
        return
    assert status == 2
    assert said.err.startswith("embstore: ")
    assert len(said.err.splitlines()) == 1
    assert "Traceback" not in said.err


@pytest.mark.parametrize("error", [OSError("disk"), ValueError("value"), ImportError("pip install 'embstore[audio]'")])
def test_errors_of_the_encoder(sounds, call, models, capsys, error):
    def fail(items):
        raise error

    models.during = fail
    assert call("embed", sounds) == 2
    assert capsys.readouterr().err == f"embstore: {error}\n"


def test_what_is_a_fault_of_the_program_is_shown_whole(sounds, call, models):
    def fail(items):
        raise ZeroDivisionError

    models.during = fail
    with pytest.raises(ZeroDivisionError):
        call("embed", sounds)


def test_interrupted(tmp_path, sounds, call, models, capsys):
    def interrupt(items):
        if models.encoded:
            raise KeyboardInterrupt

    models.during = interrupt
    assert call("embed", sounds, "--batch-size", "1", "--workers", "1") == 130
    said = capsys.readouterr()
    assert "the same command goes on from there" in said.err
    assert len(said.err.splitlines()) == 1
    assert len(stored(tmp_path)) == 1
    models.during = lambda items: None
    models.encoded.clear()
    assert call("embed", sounds) == 0
    assert len(models.encoded) == 3


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["embed"],
        ["embed", "folder", "--name", "x", "--model", "y"],
        ["embed", "folder", "--model", "y", "--cache", "c"],
        ["embed", "folder", "--name", "x", "--model", "y", "--cache", "c", "--batch-size", "many"],
        ["embed", "folder", "--name", "x", "--model", "y", "--cache", "c", "--modality", "smell"],
        ["embed", "folder", "--name", "x", "--model", "y", "--cache", "c", "--nonsense"],
        ["check", "folder", "--name", "x", "--model", "y", "--cache", "c", "--shard", "0/2"],
        ["merge"],
        ["merge", "dest"],
        ["merge", "dest", "part", "--if-exists", "nonsense"],
    ],
    ids=" ".join,
)
def test_words_that_make_no_sense(words, capsys, models):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: embstore")
    assert models.asked == []


@pytest.mark.parametrize("options", [["--batch-size", "0"], ["--batch-size", "-2"], ["--workers", "-1"]], ids=" ".join)
def test_numbers_that_make_no_sense(sounds, call, capsys, options):
    assert call("embed", sounds, *options) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("words", [[], ["embed"], ["why"], ["check"], ["merge"]], ids=" ".join)
def test_help(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*words, "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith(" ".join(["usage: embstore", *words]))
    if not words:
        for command in ("embed", "why", "check", "merge"):
            assert command in text
    else:
        assert "--verbose" in text
    expected = {
        "embed": ["--shard I/N", "--fields", "--delete-vanished", "--batch-size N", "--pattern", "{class}_*.flac"],
        "why": ["--duration SECONDS", "--name NAME", "--cache CACHE"],
        "check": ["--tolerance", "-n N"],
        "merge": ["dest", "parts", "{error,skip"],
    }
    for part in expected.get(" ".join(words), []):
        assert part in text


def test_each_option_says_what_it_is_for():
    """But for those whose names say it."""
    from embstore import cli

    parser = cli._parser()
    (commands,) = (action for action in parser._actions if action.choices)
    for command, own in commands.choices.items():
        silent = {action.dest for action in own._actions if not action.help}
        assert silent <= {"batch_size", "dest", "parts", "if_exists"}, command


# -- how much it says -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "level"),
    [([], "WARNING"), (["-v"], "INFO"), (["-vv"], "DEBUG"), (["-v", "--verbose"], "DEBUG"), (["-vvvv"], "DEBUG")],
    ids=str,
)
def test_levels(sounds, call, options, level):
    assert call("why", sounds, *options) == 1
    assert logging.getLevelName(logging.getLogger("embstore").level) == level


SCRIPT = """
import sys
import embstore.encoders
from embstore.cli import main
from tests.test_cli import Models

models = embstore.encoders.from_pretrained = Models()
{more}
sys.exit(main(sys.argv[1:]))
"""


def run(*words, more=""):
    """Run the command in a process of its own, with models that need no torch."""
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(more=more), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT,
    )


def words(command, sounds, *more):
    return [command, sounds, "--name", "pets", "--model", "tiny", "--cache", sounds.parent / "cache", *more]


def test_what_a_process_says(sounds):
    write(sounds / "dog" / "3.wav", b"")
    done = run(*words("embed", sounds))
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"not encoded: dog/3:dog: it is empty ({sounds / 'dog' / '3.wav'})"]
    assert "4 encoded" in done.stdout
    (sounds / "dog" / "3.wav").unlink()
    done = run(*words("embed", sounds, "-v"))
    assert done.returncode == 0
    assert "pets: hit: 4 stored, 0 missing, 0 stale" in done.stderr.splitlines()
    done = run(*words("embed", sounds, "--batch-size", "0"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "embstore: expected a batch of at least one sample, found 0\n"
    done = run(*words("embed", sounds, "--batch-size", "0", "-v"))
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1] == "embstore: expected a batch of at least one sample, found 0"


def test_a_process_that_is_interrupted(sounds, tmp_path):
    for i in range(40):
        write(sounds / "dog" / f"more {i}.wav", bytes([i]))
    slow = "import time; models.during = lambda items: time.sleep(0.05)"
    command = [sys.executable, "-c", SCRIPT.format(more=slow), *map(str, words("embed", sounds, "--batch-size", "1"))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    began = time.monotonic()
    while not list(tmp_path.glob("cache/*.zarr")) and time.monotonic() < began + 60:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("embstore: interrupted; what was encoded is stored")
    assert 0 < len(stored(tmp_path)) < 44


def test_the_module_is_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "embstore", "--help"], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.startswith("usage: embstore ")
    a = make(tmp_path / "a", "1:c")
    done = subprocess.run(
        [sys.executable, "-m", "embstore", "merge", str(tmp_path / "b"), a, a],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "embstore: 1 key(s) occur more than once: '1:c'\n"


def test_help_loads_no_heavy_library():
    code = (
        "import sys\nfrom embstore.cli import main\ntry:\n    main(['embed', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'transformers', 'zarr', 'pandas', 'pyarrow'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)


# -- with a real model ------------------------------------------------------------------------


needs_models = pytest.mark.skipif(
    not (find_spec("torch") and find_spec("transformers")), reason="needs torch and transformers"
)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests import tiny_models

    folder = tmp_path_factory.mktemp("models") / "bert"
    tiny_models.text(folder)
    return folder


def command(*words):
    return subprocess.run(
        [sys.executable, "-m", "embstore", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"},
    )


@needs_models
def test_from_texts_to_a_merged_store(tmp_path, texts, bert):
    what = [texts, "--name", "pets", "--model", bert, "--cache", tmp_path / "cache", "--device", "cpu"]
    what += [
        "--text-column",
        "says",
        "--id-column",
        "id",
        "--class-column",
        "label",
        "--fields",
        "mean,last_hidden_state",
    ]
    for i in range(2):
        done = command("embed", *what, "--shard", f"{i}/2")
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    parts = sorted((tmp_path / "cache").glob("*.part-?-of-2"))
    assert len(parts) == 2
    dest = parts[0].with_name(parts[0].name.partition(".part-")[0])
    done = command("merge", dest, *parts)
    assert (done.returncode, done.stdout) == (0, f"{dest}: 3 rows added, 0 skipped\n")
    done = command("embed", *what)
    assert done.returncode == 0
    assert done.stdout.startswith("hit: 3 stored")
    done = command("check", *what)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 samples encoded again: the cache still holds")
    done = command("why", *what, "--max-tokens", "5")
    assert done.returncode == 1
    assert re.search(r"preprocessing\.\S+ +wanted 5 +stored \d+", done.stdout)
    store = embstore.open(dest)
    assert set(store.fields) == {"mean", "last_hidden_state"}
    assert sorted(store) == ["1:dog", "2:cat", "3:_"]


@needs_models
@pytest.mark.parametrize(
    "options",
    [
        ["--fields", "nonsense"],
        ["--fields", ""],
        ["--dtype", "nonsense"],
        ["--compute-dtype", "nonsense"],
        ["--duration", "5"],
        ["--modality", "audio"],
        ["--max-tokens", "-1"],
        ["--max-tokens", "100000"],
    ],
    ids=" ".join,
)
def test_options_that_a_model_refuses(tmp_path, texts, bert, options, capsys):
    what = ["embed", texts, "--name", "pets", "--model", bert, "--cache", tmp_path / "cache"]
    what += ["--text-column", "says", "--id-column", "id", *options]
    assert main([*map(str, what)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "cache").exists()


@needs_models
@pytest.mark.parametrize("device", ["nonsense", "cuda:77"])
def test_a_device_that_there_is_not(tmp_path, texts, bert, device, capsys):
    what = ["embed", texts, "--name", "pets", "--model", bert, "--cache", tmp_path / "cache", "--device", device]
    assert main([*map(str, what), "--text-column", "says", "--id-column", "id"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1

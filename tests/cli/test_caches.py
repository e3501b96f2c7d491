"""The command `cache`: what is listed and counted, what is removed, and who is asked before. And completion."""

import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pytest

import embstore
from embstore._engine import sizes
from embstore._engine.io import locks
from embstore.cache.usage import count, usage_of
from embstore.cli import main
from embstore.cli.exits import ABSENT, AGAIN, DONE, INTERRUPTED, PARTLY, WRONG
from tests.cli.events import ROOT, run

DAY = 86_400


@pytest.fixture
def cache(tmp_path):
    return embstore.Cache(tmp_path / "pets.cache")


@pytest.fixture
def stores(cache):
    """Three stores: of a model on two data sets, and another model's; not used for 40, 20 and no days."""
    paths = []
    for model, dataset, age in (("MIT/ast", "dogs", 40), ("MIT/ast", "cats", 20), ("MIT/clip", "cats", 0)):
        config = {"encoder": {"id": model}, "dataset": dataset, "duration": 5}
        with embstore.open(cache.path_of(config), "a", config=config) as store:  # by its path: no use is noted
            store.append([f"{i}:c" for i in range(1200)], np.ones((1200, 64), np.float32))
        os.utime(store.path / "zarr.json", (time.time() - age * DAY,) * 2)
        paths.append(store.path)
    return paths


@pytest.fixture
def typed(monkeypatch):
    """Set the text that is typed at a terminal. None is no terminal, as in these tests by default."""

    def typed(text):
        stdin = io.TextIOWrapper(io.BytesIO((text or "").encode()))
        monkeypatch.setattr(stdin, "isatty", lambda: text is not None, raising=False)
        monkeypatch.setattr(sys, "stdin", stdin)

    typed(None)
    return typed


@pytest.fixture
def call(cache, said, typed):
    """Run a command on the cache, which succeeds, and return its output."""
    return lambda command, *words, status=DONE: said("cache", command, cache.path, *words, status=status)


@pytest.fixture
def fails(cache, refused, typed):
    """Run a command on the cache, which is refused, and return its message."""
    return lambda status, command, *words: refused(status, "cache", command, cache.path, *words)


@pytest.fixture
def answered(cache, typed, capsys):
    """Run a command at a terminal where someone types. Return its status, its output and its questions."""

    def answered(text, command, *words):
        typed(text)
        status = main(["cache", command, str(cache.path), *words])
        return status, *capsys.readouterr()

    return answered


def there(paths):
    return [path.exists() for path in paths]


# -- ls and stats -----------------------------------------------------------------------------


def test_ls(cache, stores, call):
    lines = call("ls")
    assert re.split(r"  +", lines[0]) == ["store", "rows", "on disk", "dataset", "differs in", "last used"]
    used = [time.strftime("%Y-%m-%d", time.localtime(time.time() - age * DAY)) for age in (40, 20, 0)]
    size = sizes.size(cache.stats()[0].nbytes)
    assert {tuple(line.split()[:-1]) for line in lines[1:]} == {
        (path.name, "1,200", *size.split(), dataset, day)
        for path, dataset, day in zip(stores, ["dogs", "cats", "cats"], used, strict=True)
    }
    assert [len(line) for line in lines[1:]] == [len(lines[1])] * 3
    found = {entry["path"]: entry for entry in call("ls", "--json")}
    entries = [found.pop(str(path)) for path in stores]
    assert found == {}
    assert {entry["rows"] for entry in entries} == {1200}
    ages = [(time.time() - entry["last_used"]) / DAY for entry in entries]
    assert ages == pytest.approx([40, 20, 0], abs=0.01)
    assert [entry["config"]["encoder"]["id"] for entry in entries] == ["MIT/ast", "MIT/ast", "MIT/clip"]


def test_ls_shows_what_differs(cache, call):
    for config in ({"duration": 5}, {"duration": 10, "weights": "0123456789abcdef" * 2}):
        cache.open({"encoder": {"id": "MIT/ast"}, "dataset": "dogs", **config}, "a").close()
    cache.pin(duration=10)
    five, ten = sorted(call("ls")[1:], key=lambda line: "duration=10" in line)
    assert "  dogs     duration=5   " in five
    assert "  dogs     duration=10, weights=01234567…  " in ten
    assert [line.endswith(", pinned") for line in (five, ten)] == [False, True]
    assert [entry["differs"] for entry in call("ls", "--having", "duration=5", "--json")] == [{"duration": 5}]


def test_pins(stores, call, fails):
    assert call("pin", "--having", "dataset=dogs") == [f"{stores[0].name}: pinned"]
    assert call("pin", "--having", "dataset=dogs", "--json") == [{"paths": [str(stores[0])]}]
    with embstore.open(stores[1]):
        (answer,) = call("prune", "--max-size", "0", "--yes", "--json")
    assert answer["removed"] == [str(stores[2])]
    assert there(stores) == [True, True, False]
    assert call("unpin", "--having", "dataset=dogs") == [f"{stores[0].name}: no longer pinned"]
    assert len(call("prune", "--max-size", "0", "--yes")) == 3
    assert there(stores) == [False] * 3
    assert "no store in" in fails(ABSENT, "pin", "--having", "dataset=dogs")


@pytest.mark.parametrize(
    ("having", "places"),
    [
        (["encoder.id=MIT/ast"], [0, 1]),
        (["dataset=cats"], [1, 2]),
        (['dataset="cats"', "encoder.id=MIT/clip"], [2]),
        (["duration=5"], [0, 1, 2]),
        (["duration=5.0"], [0, 1, 2]),
        (['duration="5"'], []),
        (['encoder={"id":"MIT/ast"}'], [0, 1]),
        (["nonsense=1"], []),
        (["encoder.id.more=1"], []),
        (["dataset=dogs", "dataset=cats"], [1, 2]),
        (["dataset="], []),
    ],
    ids=str,
)
def test_having(stores, call, having, places):
    words = [word for pair in having for word in ("--having", pair)]
    expected = {str(stores[place]) for place in places}
    for command in ("ls", "stats"):
        assert {entry["path"] for entry in call(command, *words, "--json")} == expected
    (answer,) = call("clear", *words, "--dry-run", "--json")
    assert {entry["path"] for entry in answer["chosen"]} == expected


def test_stats(stores, call):
    count(stores[0], hits=0, misses=1200, served=1200, encoded=1200, seconds=3600)
    for _ in range(3):
        count(stores[0], hits=1200, misses=0, served=1200, encoded=0, seconds=0)
    head, line = call("stats", "--having", "dataset=dogs")
    columns = ["store", "rows", "on disk", "runs", "hits", "misses", "rows served", "time saved", "last used"]
    assert head.split() == " ".join(columns).split()
    assert line.split()[1] == "1,200"
    assert line.split()[4:-2] == ["4", "3,600", "1,200", "4,800", "3.0", "h"]
    assert line.split()[-2] == time.strftime("%Y-%m-%d")
    *_, total = call("stats")
    assert total.split()[:2] == ["all", "3,600"]
    assert total.split()[-5:] == ["3,600", "1,200", "4,800", "3.0", "h"]
    (facts,) = call("stats", "--json", "--having", "dataset=dogs")
    counts = {"rows": 1200, "runs": 4, "hits": 3600, "misses": 1200, "served": 4800, "encoded": 1200}
    assert {name: facts[name] for name in counts} == counts
    assert facts["seconds_saved"] == 10_800.0
    assert facts["path"] == str(stores[0])
    assert facts["nbytes_on_disk"] > 1200 * 64 * 4
    assert abs(facts["last_used"] - time.time()) < 60


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (1.234, "1.23 s"), (119, "119 s"), (600, "10 min"), (7200, "2.0 h")]
)
def test_times(seconds, text):
    from embstore.cli.caches import _time

    assert _time(seconds) == text


def test_an_empty_cache(cache, call):
    cache.path.mkdir()
    assert call("ls") == ["store  rows  on disk  dataset  differs in  last used"]
    call("stats")
    assert call("clear") == call("prune", "--max-size", "0") == ["0 stores removed of 0, 0 B"]


@pytest.mark.parametrize("command", ["ls", "stats", "clear", "prune"])
@pytest.mark.parametrize(
    ("place", "status"), [("nowhere", ABSENT), ("file", ABSENT), ("store", WRONG), ("", WRONG), ("http://h/c", AGAIN)]
)
def test_what_is_no_cache(tmp_path, refused, monkeypatch, command, place, status):
    """Above all where it would be emptied: `cache clear "$UNSET" --yes` must not empty the folder that one is in."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    for name in ("store", "here.zarr"):
        with embstore.open(name, "w-", config={"a": 1}) as store:
            store.append(["1:c"], np.ones((1, 2), np.float32))
    more = {"clear": ["--yes"], "prune": ["--yes", "--max-size", "0"]}.get(command, [])
    refused(status, "cache", command, place, *more)
    assert Path("here.zarr").exists()
    assert not Path("nowhere").exists()


def test_a_broken_store_is_said_to_be_left_out(stores, call):
    (stores[0] / "zarr.json").write_text("{")
    assert len(call("ls")) == 3


# -- clear and prune --------------------------------------------------------------------------


def test_clear(stores, call):
    *lines, last = call("clear", "--yes")
    assert sorted(line.partition(":")[0] for line in lines) == sorted(path.name for path in stores)
    assert all(": 1,200 rows, " in line and ", last used 20" in line for line in lines)
    assert last.startswith("3 stores removed of 3, ")
    assert there(stores) == [False] * 3


def test_clear_some(stores, call):
    (answer,) = call("clear", "-y", "--having", "dataset=cats", "--json")
    assert set(answer["removed"]) == {str(stores[1]), str(stores[2])} == {entry["path"] for entry in answer["chosen"]}
    assert there(stores) == [True, False, False]
    assert call("clear", "-y", "--having", "dataset=cats") == ["0 stores removed of 0, 0 B"]


def test_dry_run(stores, call):
    for words in (["clear"], ["prune", "--max-size", "0"], ["clear", "--yes"]):
        *chosen, last = call(*words, "--dry-run")
        assert len(chosen) == 3
        assert last.startswith("3 stores, ")
        assert last.endswith(", would be removed")
        (answer,) = call(*words, "--dry-run", "--json")
        assert (len(answer["chosen"]), answer["removed"]) == (3, [])
    assert there(stores) == [True] * 3


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["--unused-for", "30d"], [False, True, True]),
        (["--unused-for", "720h"], [False, True, True]),
        (["--unused-for", "2w"], [False, False, True]),
        (["--unused-for", "50d"], [True, True, True]),
        (["--unused-for", "0s"], [False, False, False]),
        (["--unused-for", " 1.5 W "], [False, False, True]),
        (["--max-size", "0"], [False, False, False]),
        (["--max-size", "500kB"], [False, False, True]),
        (["--max-size", "0.9 MB"], [False, True, True]),
        (["--max-size", "900000"], [False, True, True]),
        (["--max-size", "1g"], [True, True, True]),
        (["--max-size", "999999999999T"], [True, True, True]),
        (["--max-size", "1G", "--unused-for", "10d"], [False, False, True]),
        (["--max-size", "0", "--having", "dataset=cats"], [True, False, False]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value[0], str) else "",
)
def test_prune(stores, call, words, left):
    *_, last = call("prune", *words, "--yes")
    assert there(stores) == left
    assert last.startswith(f"{left.count(False)} store")
    assert f" removed of {left.count(False)}, " in last


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "prune needs --max-size or --unused-for"),
        (["--max-size", ""], "expected a number of bytes"),
        (["--max-size", "-1"], "expected a number of bytes"),
        (["--max-size", "1e9"], "expected a number of bytes"),
        (["--max-size", "10 parsecs"], "expected a number of bytes"),
        (["--max-size", "9" * 400], "expected a number of bytes"),
        (["--max-size", "1" + "0" * 10_000 + "GB"], "expected a number of bytes"),
        (["--max-size", "٣GB"], "expected a number of bytes"),
        (["--max-size", "nan"], "expected a number of bytes"),
        (["--unused-for", "30"], "expected a length of time"),
        (["--unused-for", "-30d"], "expected a length of time"),
        (["--unused-for", "9" * 400 + "d"], "expected a length of time"),
        (["--unused-for", "1y"], "expected a length of time"),
        (["--unused-for", ""], "expected a length of time"),
        (["--max-size", "0", "--having", "dataset"], "expected NAME=VALUE, found 'dataset'"),
        (["--max-size", "0", "--having", "=x"], "expected NAME=VALUE"),
        (["--max-size", "0", "--having", "duration=NaN"], "finite|NaN|nan"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_limits_that_make_no_sense(stores, fails, words, reason):
    assert re.search(reason, fails(WRONG, "prune", "--yes", *words))
    assert there(stores) == [True] * 3


def test_nobody_is_there_to_be_asked(stores, call, fails, monkeypatch):
    for words in (["clear"], ["prune", "--unused-for", "30d"], ["clear", "--json"]):
        assert "pass --yes or --dry-run" in fails(WRONG, *words)
    monkeypatch.setattr(sys, "stdin", None)  # it was closed
    fails(WRONG, "clear")
    assert there(stores) == [True] * 3
    assert call("prune", "--unused-for", "50d") == ["0 stores removed of 0, 0 B"]  # nor is that necessary


@pytest.mark.parametrize("answer", ["y\n", "yes\n", "Y\n", "maybe\ny\n"])
def test_whoever_is_there_agrees(stores, answered, answer):
    status, out, err = answered(answer, "prune", "--unused-for", "30d")
    assert status == DONE
    assert "remove 1 store, " in err
    assert "? [y/N]: " in err
    assert "[y/N]" not in out
    assert out.splitlines()[-1].startswith("1 store removed of 1, ")
    assert there(stores) == [False, True, True]


@pytest.mark.parametrize(("answer", "expected"), [("n\n", PARTLY), ("\n", PARTLY), ("no\n", PARTLY), ("", INTERRUPTED)])
def test_whoever_is_there_does_not_agree(stores, answered, answer, expected):
    status, out, err = answered(answer, "clear")
    assert status == expected
    assert "remove 3 stores, " in err
    if expected == PARTLY:
        assert out.splitlines()[-1] == "0 stores removed of 3, 0 B"
    else:
        assert err.splitlines()[-1] == "embstore: interrupted"
    assert there(stores) == [True] * 3


def test_at_a_real_terminal(stores, cache):
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "embstore", "cache", "prune", str(cache.path), "--unused-for", "30d"]
    process = subprocess.Popen(command, stdin=end, stdout=end, stderr=end, cwd=ROOT)
    os.close(end)
    shown = b""
    while b"[y/N]: " not in shown:
        shown += os.read(terminal, 4096)
    assert there(stores) == [True] * 3
    os.write(terminal, b"y\n")
    assert process.wait(timeout=60) == DONE
    os.close(terminal)
    assert there(stores) == [False, True, True]


def test_what_changes_while_one_is_asked(stores, answered, monkeypatch):
    """Just what was shown is removed."""

    def confirm(question, **options):
        count(stores[0], hits=1, misses=0, served=1, encoded=0, seconds=0)
        os.utime(stores[1] / "zarr.json", (0, 0))
        return True

    monkeypatch.setattr(click, "confirm", confirm)
    status, out, _ = answered("", "prune", "--unused-for", "30d")
    assert status == DONE
    assert out.splitlines()[0].startswith(stores[0].name)
    assert there(stores) == [False, True, True]


def test_a_store_whose_writer_is_at_work(stores, cache, call):
    with locks.lock(stores[0], timeout=0):
        assert call("clear", "--yes", status=PARTLY)[-1].startswith("2 stores removed of 3, ")
        assert there(stores) == [True, False, False]
        done = run("cache", "clear", cache.path, "--yes", "--json")
        assert done.returncode == PARTLY
        assert json.loads(done.stdout)["removed"] == []
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith(f"{stores[0]}: not removed: ")
        assert f"process {os.getpid()}" in done.stderr
    assert embstore.verify(stores[0]).ok
    call("clear", "--yes")


def test_what_was_counted_goes_with_it(stores, call):
    count(stores[0], hits=1, misses=0, served=1, encoded=0, seconds=0)
    call("clear", "--yes")
    assert usage_of(stores[0]).runs == 0


def test_a_cache_that_can_only_be_read(stores, call, answered, monkeypatch):
    def fail(path, **options):
        raise embstore.errors.ReadOnlyError(path, "read-only file system")

    monkeypatch.setattr("embstore.cache.prune.lock", fail)
    status, _, err = answered(None, "clear", "--yes")
    assert status == AGAIN
    assert len(err.splitlines()) == 1
    call("stats")
    assert there(stores) == [True] * 3


# -- completion -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shell", "words"),
    [
        ("bash", ["_embstore_completion", "complete -o nosort -F", "COMP_WORDS"]),
        ("zsh", ["#compdef embstore", "compdef _embstore_completion embstore"]),
        ("fish", ["complete --no-files --command embstore", "commandline -t"]),
    ],
)
def test_completion_scripts(said, shell, words):
    script = "\n".join(said("completion", shell))
    assert all(word in script for word in [*words, f"_EMBSTORE_COMPLETE={shell}_complete"])


@pytest.mark.parametrize("words", [["completion"], ["completion", "powershell"], ["completion", ""]], ids=" ".join)
def test_shells_that_there_are_not(capsys, words):
    assert main(words) == WRONG
    assert capsys.readouterr().err.startswith("Usage: embstore completion ")


def completed(*words, shell="bash"):
    """Return what the last of the words may become, as a shell asks for it."""
    env = {**os.environ, "_EMBSTORE_COMPLETE": f"{shell}_complete", "COMP_WORDS": " ".join(["embstore", *words])}
    env["COMP_CWORD"] = words[-1] if shell == "fish" else str(len(words))
    done = run(env=env)
    assert (done.returncode, done.stderr) == (DONE, "")
    lines = done.stdout.splitlines() if done.stdout != "\n" else []
    if shell == "zsh":
        return dict(zip(lines[1::3], lines[::3], strict=True))
    pairs = [line.split(",", 1) for line in lines]
    return {value.partition("\t")[0]: kind for kind, value in pairs}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_words_that_are_completed(tmp_path, shell):
    path = tmp_path / "s.zarr"
    with embstore.open(path, "w-", config={"a": 1}) as store:
        store.append(["1:dog", "2:cat", "3:donkey", "4:Dachs"], np.ones((4, 1), np.float32))
    assert set(completed("in", shell=shell)) == {"info"}
    assert set(completed("i", shell=shell)) == {"info", "import"}
    assert set(completed("cache", "", shell=shell)) == {"ls", "stats", "clear", "prune", "pin", "unpin"}
    assert set(completed("ls", str(path), "--class", "d", shell=shell)) == {"dog", "donkey"}
    assert set(completed("ls", str(path), "--class", "dog", "--class", "c", shell=shell)) == {"cat"}
    assert "--where" in completed("ls", str(path), "--", shell=shell)
    assert set(completed("merge", "a", "b", "--if-exists", "s", shell=shell)) == {"skip"}


def test_words_that_are_not_completed(tmp_path):
    """Where there is no store, nothing is said, and nothing goes wrong."""
    for words in (["ls", "nowhere"], ["ls", str(tmp_path)], ["ls"], ["export", "nowhere", "file"]):
        assert completed(*words, "--class", "d") == {}
    assert set(completed("info", "x").values()) == {"file"}  # the shell completes paths itself


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_itself(tmp_path):
    command = tmp_path / "bin" / "embstore"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m embstore "$@"\n')
    command.chmod(0o755)
    script = (
        'eval "$(embstore completion bash)" && complete -p embstore\n'
        "COMP_WORDS=(embstore i); COMP_CWORD=1; _embstore_completion embstore\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    env = {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, timeout=120, cwd=ROOT, env=env
    )
    assert done.stderr == ""
    registered, *words = done.stdout.splitlines()
    assert registered == "complete -o nosort -F _embstore_completion embstore"
    assert words == ["info", "import"]

"""The commands on one store: what they print for people and for programs, and how they end."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest

import embstore
from embstore import FieldSpec, Ragged
from embstore.cli import main
from embstore.cli.exits import ABSENT, AGAIN, ANOTHER, BROKEN, DONE, PARTLY, UNREAD, WRONG
from tests._helpers.damage import flip
from tests.cli.events import ROOT, run

CONFIG = {"encoder": {"id": "MIT/ast", "revision": "v1"}, "dataset": "pets", "duration": 5}
KEYS = ["a:dog", "b:dog", "c:cat", "d:dog", "e:owl"]
ROWS = np.arange(15, dtype=np.float32).reshape(5, 3) / 4
COLUMNS = {
    "split": ["train", "test", "train", "1", "true"],
    "n": [0, 1, 2, 3, 2**40],
    "score": [0.5, 1, 1.5, np.nan, 2],
}
TRICKY = ["two\nlines:dog", "tab\tbed:dog", "\x1b[31mred:dog", "ünï/犬:кот", "right\u202eleft:dog", "no\u2028line:dog"]


def fill(path, keys=KEYS, rows=ROWS, columns=COLUMNS, config=CONFIG, **options):
    with embstore.open(path, "w-", config=config, **options) as store:
        store.append(keys, rows, columns=columns)
    return str(path)


@pytest.fixture
def store(path):
    return fill(path)


@pytest.fixture
def odd(tmp_path):
    """A store of three fields: of one shape, ragged, and of half the precision."""
    fields = {
        "mean": FieldSpec(shape=(2,), layer="last", pooling="mean"),
        "tokens": FieldSpec(shape=(2,), ragged=True),
        "half": FieldSpec(shape=(2,), dtype="bfloat16", nonfinite="allow"),
    }
    path = tmp_path / "odd.zarr"
    with embstore.open(path, "w-", config={"a": 1}, fields=fields) as store:
        tokens = Ragged(np.arange(12, dtype=np.float32).reshape(6, 2), np.array([0, 1, 4, 6]))
        values = {"mean": np.ones((3, 2), np.float32), "tokens": tokens}
        half = np.array([[1, 2], [np.nan, 3], [0.5, np.inf]], np.float32)
        store.append(["x:c", "y:c", "z:c"], values | {"half": half}, casting="same_kind")
    return str(path)


@pytest.fixture
def cache(tmp_path):
    """A cache of two stores."""
    cache = embstore.Cache(tmp_path / "pets.cache")
    for duration in (5, 10):
        with cache.open({**CONFIG, "duration": duration}, "a") as store:
            store.append(KEYS[: duration // 5], ROWS[: duration // 5])
    return str(cache.path)


# -- info -------------------------------------------------------------------------------------


def test_info(store, said):
    with embstore.open(store) as opened:
        fingerprint = opened.snapshot.record.fingerprint
    assert said("info", store) == [
        f"store               {store}",
        "rows                5",
        "size                60 B",
        "classes             3: dog (3), cat (1), owl (1)",
        "field               embedding float32 (3)",
        "column              split string",
        "column              n int64",
        "column              score float64",
        f"config              {fingerprint}",
        "  encoder.id        'MIT/ast'",
        "  encoder.revision  'v1'",
        "  dataset           'pets'",
        "  duration          5",
    ]


def test_info_leaves_defaults_out(tmp_path, said):
    settings = {"hidden_act": "gelu", "hidden_size": 384, "hidden_dropout_prob": 0.1}
    config = {"encoder": {"id": "m", "type": "bert", "settings": settings}, "compute_dtype": "float32"}
    embstore.open(tmp_path / "e.zarr", "w-", config=config).close()
    shown = ["'m'", "'bert'", "384"]
    lines = said("info", tmp_path / "e.zarr")
    assert [line.split()[-1] for line in lines if line.startswith("  encoder")] == shown
    assert lines[-1].endswith("3 more at their defaults, which -v shows")
    every = [line.split()[0] for line in said("info", "-v", tmp_path / "e.zarr") if line.startswith("  ")]
    assert every == [f"encoder.{name}" for name in ("id", "type", *(f"settings.{n}" for n in settings))] + [
        "compute_dtype"
    ]


def test_info_for_programs(store, said):
    with embstore.open(store) as opened:
        record = opened.snapshot.record
    spec = {"shape": [3], "dtype": "float32", "layer": None, "pooling": None, "nonfinite": "refuse", "dims": None}
    assert said("info", store, "--json") == [
        {
            **{"path": store, "rows": 5, "deleted": 0, "nbytes": 60, "classes": {"dog": 3, "cat": 1, "owl": 1}},
            **{"fields": {"embedding": {**spec, "ragged": False}}},
            **{"columns": {"split": "string", "n": "int64", "score": "float64"}, "compression": None},
            **{"fingerprint": record.fingerprint, "config": CONFIG, "provenance": {}, "commit_id": record.commit_id},
        }
    ]


def test_info_of_more_than_is_shown(tmp_path, said):
    keys = [f"{i}:c{i % 20:02d}" for i in range(45)]
    path = tmp_path / "many.zarr"
    fill(
        path, keys, np.ones((45, 2), np.float32), {}, {"a": "x" * 200}, provenance={"host": "here"}, compression="zstd"
    )
    with embstore.open(path, "r+") as store:
        store.delete(keys[:2])
    lines = said("info", path)
    assert lines[1:3] == ["rows            43, and 2 deleted", "size            360 B before zstd"]
    assert lines[3].startswith("classes         20: c02 (3), c03 (3), c04 (3), c00 (2), ")
    assert lines[3].endswith("c11 (2), … 8 more")
    assert lines[-2:] == [f"  a             '{'x' * 78}…", "made with host  here"]
    (facts,) = said("info", path, "--json")
    assert (facts["rows"], facts["deleted"], facts["compression"]) == (43, 2, "zstd")
    assert sum(facts["classes"].values()) == 43


def test_info_of_several_fields(odd, said):
    lines = said("info", odd)
    assert [line.split(maxsplit=1)[1] for line in lines if line.startswith("field")] == [
        *("mean float32 (2), last.mean", "tokens float32 (length, 2)", "half bfloat16 (2)")
    ]


def test_info_of_an_empty_store(tmp_path, said):
    embstore.open(tmp_path / "e.zarr", "w-", config={"a": 1})
    assert said("info", tmp_path / "e.zarr")[1:4] == ["rows     0", "size     0 B", "classes  0"]
    assert said("ls", tmp_path / "e.zarr") == []
    assert said("ls", "--long", tmp_path / "e.zarr") == []
    assert said("verify", tmp_path / "e.zarr") == [f"{tmp_path / 'e.zarr'}: 0 rows, all as they were committed"]


@pytest.mark.parametrize("command", ["info", "ls"])
def test_a_cache_is_listed(cache, said, command):
    lines = said(command, cache)
    assert lines[0].split() == ["store", "rows", "on", "disk", "dataset", "differs", "in", "last", "used"]
    today = time.strftime("%Y-%m-%d")
    stores = sorted((words[1], words[-2]) for words in (line.split() for line in lines[1:]))
    assert stores == [("1", today), ("2", today)]
    assert all("  pets     duration=" in line for line in lines[1:])
    for place in (cache, f"file://{cache}"):
        found = said(command, place, "--json")
        assert sorted(entry["rows"] for entry in found) == [1, 2]
        assert all(entry["config"]["dataset"] == "pets" for entry in found)


def test_rows_of_a_cache_are_nobodys(cache, refused):
    for words in (["--long"], ["--class", "dog"], ["--where", "split=train"]):
        assert "is a cache" in refused(WRONG, "ls", cache, *words)
    assert "is not an embstore store" in refused(ABSENT, "get", cache, "a:dog")


def copied_to_memory(path, name):
    memory = fsspec.filesystem("memory")
    for file in Path(path).rglob("*"):
        if file.is_file():
            memory.pipe_file(f"/{name}/{file.relative_to(path)}", file.read_bytes())
    return f"memory://{name}"


def test_what_looks_like_a_url_is_one_everywhere():
    from embstore._engine.io.urls import is_url
    from embstore.cli import options

    for place in ("s3://a/b", "zip://x::s3://a/b", "http://a", "C:/x", "a::b", "a:b", "/x://y", "x", "./s3://a"):
        assert bool(options._URL.match(place)) == is_url(place), place


def test_a_url(store, said, refused, tmp_path):
    url = copied_to_memory(store, "pets.zarr")
    assert said("info", url)[1:] == said("info", store)[1:]
    assert said("ls", url) == KEYS
    assert said("get", url, "a:dog", "--storage", "skip_instance_cache=true") == ["a:dog [0.   0.25 0.5 ]"]
    refused(ABSENT, "info", "memory://nothing")
    refused(AGAIN, "info", "nonsense://x")
    refused(AGAIN, "compact", url)
    assert said("verify", url) == [f"{url}: {len(KEYS)} rows, all as they were committed"]
    saved, dest = tmp_path / "saved", tmp_path / "dest"
    assert said("salvage", url, saved) == [f"{saved}: {len(KEYS)} rows kept, 0 lost"]
    assert said("merge", dest, url) == [f"{dest}: {len(KEYS)} rows added, 0 skipped"]
    assert "read-only there" in refused(AGAIN, "merge", url, store)
    assert "expected a URL with storage_options" in refused(WRONG, "info", store, "--storage", "a=1")
    assert said("ls", f"file://{store}") == KEYS


# -- ls ---------------------------------------------------------------------------------------


def test_ls(store, said):
    assert said("ls", store) == KEYS
    assert said("ls", store, "--class", "dog") == ["a:dog", "b:dog", "d:dog"]
    assert said("ls", store, "--class", "owl", "--class", "cat") == ["c:cat", "e:owl"]


@pytest.mark.parametrize(
    ("conditions", "keys"),
    [
        (["split=train"], "ac"),
        (['split="train"'], "ac"),
        (["split=1"], "d"),  # in a column of texts all values are texts
        (['split="1"'], "d"),
        (["split=true"], "e"),
        (["split=null"], ""),
        (["split=train", "split=test"], "abc"),
        (['split=["train","test"]'], "abc"),
        (['split=["train",1,true]'], "acde"),
        (["split=[]"], ""),
        (["split=["], ""),
        (["split="], ""),
        (["n=1"], "b"),
        (["n=1.0"], "b"),
        (["n=1.5"], ""),
        (["n=[1,2]"], "bc"),
        (["n=1099511627776"], "e"),
        (["n=1" + "0" * 40], ""),
        (["n=-1"], ""),
        (["score=1"], "b"),
        (["score=1e999"], ""),
        (["split=train", "n=2"], "c"),
    ],
    ids=str,
)
def test_conditions(store, said, conditions, keys):
    words = [word for condition in conditions for word in ("--where", condition)]
    assert said("ls", store, *words) == [key for key in KEYS if key[0] in keys]


@pytest.mark.parametrize(
    ("words", "status", "reason"),
    [
        (["--where", "nonsense=1"], ABSENT, "no column 'nonsense' in "),
        (["--where", "class_name=dog"], WRONG, "use --class dog"),
        (["--where", "klass=dog"], ABSENT, "columns: split, n, score"),
        (["--where", "n=two"], WRONG, "column 'n' holds int64, found 'two'"),
        (["--where", "n="], WRONG, "column 'n' holds int64, found ''"),
        (["--where", "n=null"], WRONG, "column 'n' holds int64"),
        (["--where", 'n={"a":1}'], WRONG, "column 'n' holds int64"),
        (["--where", "n=[[1]]"], WRONG, "column 'n' holds int64"),
        (["--where", "n=" + "[" * 100_000], WRONG, "column 'n' holds int64"),
        (["--where", "split"], WRONG, "expected COLUMN=VALUE, found 'split'"),
        (["--where", "=train"], WRONG, "expected COLUMN=VALUE"),
        (["--where", ""], WRONG, "expected COLUMN=VALUE"),
        (["--class", "unicorn"], ABSENT, "no class 'unicorn'; classes: 'dog', 'cat', 'owl'"),
        (["--class", ""], ABSENT, "no class ''"),
        (["--limit", "-1"], WRONG, "-1 is not in the range x>=0"),
        (["--limit", "many"], WRONG, "'many' is not a valid integer"),
        (["--limit", ""], WRONG, "'' is not a valid integer"),
        (["more"], WRONG, "unexpected extra argument (more)"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_selections_that_make_no_sense(store, refused, words, status, reason):
    assert reason in refused(status, "ls", store, *words)


def test_limits(store, capsys):
    for limit, shown in ((1, 1), (4, 4), (5, 5), (6, 5), (0, 5), (10**30, 5)):
        for json_ in ([], ["--json"]):
            assert main(["ls", store, "-n", str(limit), *json_]) == DONE
            printed = capsys.readouterr()
            assert len(printed.out.splitlines()) == shown
            assert printed.err == ("" if shown == 5 else f"… and {5 - shown} more (--limit 0 for all)\n")


def test_the_limit_there_is_anyway(tmp_path, capsys):
    keys = [f"{i}:c" for i in range(60)]
    path = fill(tmp_path / "s.zarr", keys, np.ones((60, 1), np.float32), {})
    assert main(["ls", path]) == DONE
    printed = capsys.readouterr()
    assert printed.out.splitlines() == keys[:50]
    assert printed.err == "… and 10 more (--limit 0 for all)\n"


def test_ls_for_programs(store, said):
    assert said("ls", store, "--json") == [
        {"key": "a:dog", "split": "train", "n": 0, "score": 0.5},
        {"key": "b:dog", "split": "test", "n": 1, "score": 1.0},
        {"key": "c:cat", "split": "train", "n": 2, "score": 1.5},
        {"key": "d:dog", "split": "1", "n": 3, "score": None},
        {"key": "e:owl", "split": "true", "n": 2**40, "score": 2.0},
    ]


def test_ls_with_columns(store, said):
    assert said("ls", store, "--long", "--where", "split=train") == said("ls", store, "-l", "--where", "split=train")
    assert said("ls", store, "--long") == [
        "key    split  n              score",
        "a:dog  train  0              0.5",
        "b:dog  test   1              1.0",
        "c:cat  train  2              1.5",
        "d:dog  1      3              nan",
        "e:owl  true   1099511627776  2.0",
    ]


def test_a_table_that_goes_on_has_one_head(store, said, monkeypatch):
    monkeypatch.setattr("embstore.cli.stores._BLOCK_ROWS", 2)
    lines = said("ls", store, "--long")
    assert [line.split()[0] for line in lines] == ["key", *KEYS]
    assert said("ls", store) == KEYS


def test_deleted_rows_are_not_listed(store, said, refused):
    with embstore.open(store, "r+") as opened:
        opened.delete(["a:dog"])
    assert said("ls", store) == KEYS[1:]
    assert "'a:dog'" in refused(ABSENT, "get", store, "a:dog")


# -- get --------------------------------------------------------------------------------------


def test_get(store, said):
    assert said("get", store, "b:dog") == ["b:dog [0.75 1.   1.25]"]
    assert said("get", store, "e:owl", "a:dog", "e:owl") == [
        *("e:owl [3.   3.25 3.5 ]", "a:dog [0.   0.25 0.5 ]", "e:owl [3.   3.25 3.5 ]")
    ]
    assert said("get", store, "b:dog", "--json") == [{"key": "b:dog", "value": [0.75, 1.0, 1.25]}]


def test_get_what_is_not_there(store, refused):
    line = refused(ABSENT, "get", store, "a:dog", "x:dog", "y:dog")
    assert "2 key(s) are not in" in line
    assert "'x:dog', 'y:dog'" in line
    assert "is not a key" in refused(WRONG, "get", store, "a:dog", "nonsense:")
    assert "is not a key" in refused(WRONG, "get", store, "")
    assert "Missing argument 'KEYS...'" in refused(WRONG, "get", store)
    assert "no field 'nonsense'" in refused(ABSENT, "get", store, "a:dog", "--field", "nonsense")


def test_get_a_field_of_several(odd, said, refused):
    primary = embstore.open(odd).snapshot.record.primary
    assert said("get", odd, "x:c") == said("get", odd, "x:c", "--field", primary)
    assert said("get", odd, "x:c", "--field", "mean") == ["x:c [1. 1.]"]


def test_get_rows_of_their_own_lengths(odd, said):
    found = said("get", odd, "x:c", "y:c", "z:c", "--field", "tokens", "--json")
    assert [row["value"] for row in found] == [
        *([[0, 1]], [[2, 3], [4, 5], [6, 7]], [[8, 9], [10, 11]]),
    ]
    assert said("get", odd, "z:c", "--field", "tokens") == ["z:c [[ 8.  9.]", " [10. 11.]]"]


def test_get_bfloat16(odd, said):
    found = said("get", odd, "x:c", "y:c", "z:c", "--field", "half", "--json")
    assert [row["value"] for row in found] == [[1, 2], [None, 3], [0.5, None]]
    assert said("get", odd, "y:c", "--field", "half") == ["y:c [nan  3.]"]


def test_get_into_a_file(tmp_path, store, odd, said, refused):
    target = tmp_path / "rows.npy"
    assert said("get", store, "c:cat", "a:dog", "-o", target) == [f"{target}: 2 rows"]
    np.testing.assert_array_equal(np.load(target), ROWS[[2, 0]])
    named = tmp_path / "another name"
    assert said("get", store, "a:dog", "-o", named, "--json") == [{"path": str(named), "rows": 1}]
    np.testing.assert_array_equal(np.load(named), ROWS[:1])
    said("get", odd, "y:c", "--field", "half", "-o", target)  # what is there is replaced
    np.testing.assert_array_equal(np.load(target), np.array([[np.nan, 3]], np.float32))
    said("get", odd, "y:c", "y:c", "--field", "tokens", "--output", target)
    np.testing.assert_array_equal(np.load(target), [[[2, 3], [4, 5], [6, 7]]] * 2)
    before = target.read_bytes()
    line = refused(WRONG, "get", odd, "x:c", "y:c", "--field", "tokens", "-o", target)
    assert "expected rows of one length, found 1 to 3 tokens" in line
    refused(ABSENT, "get", store, "x:x", "-o", target)
    assert target.read_bytes() == before
    refused(ABSENT, "get", store, "a:dog", "-o", tmp_path / "nowhere" / "x.npy")
    assert sorted(p.name for p in tmp_path.iterdir() if "npy" in p.name) == ["rows.npy"]


@pytest.mark.parametrize("place", ["folder", "/dev/null", "pipe", ""])
def test_what_is_no_file_is_not_replaced_by_one(tmp_path, store, refused, place, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    os.mkfifo("pipe")
    refused(WRONG, "get", store, "a:dog", "-o", place)
    assert not Path("/dev/null").is_file()
    assert Path("pipe").is_fifo()


def typed(monkeypatch, data, encoding="utf-8"):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding=encoding))


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"a:dog\nc:cat\n", ["a:dog", "c:cat"]),
        (b"a:dog\r\n\r\nc:cat", ["a:dog", "c:cat"]),
        (b"", []),
        (b"\n\n", []),
        ("ü:犬\n".encode(), ["ü:犬"]),
    ],
)
def test_get_keys_from_standard_input(tmp_path, said, monkeypatch, data, keys):
    path = fill(tmp_path / "s.zarr", ["a:dog", "c:cat", "ü:犬"], ROWS[:3], {})
    for encoding in ("utf-8", "ascii"):
        typed(monkeypatch, data, encoding)
        assert [row["key"] for row in said("get", path, "-", "--json")] == keys
    typed(monkeypatch, data)
    said("get", path, "-", "-o", tmp_path / "rows.npy")
    assert np.load(tmp_path / "rows.npy").shape == (len(keys), 3)


def test_get_nonsense_from_standard_input(store, refused, monkeypatch):
    typed(monkeypatch, b"a:dog\n\xff\xfe\n")
    refused(WRONG, "get", store, "-")
    typed(monkeypatch, b"a:dog\n  \n")
    refused(ABSENT, "get", store, "-")
    refused(ABSENT, "get", store, "-", "a:dog")  # beside others, "-" is a key
    monkeypatch.setattr(sys, "stdin", None)  # it was closed
    assert main(["get", store, "-"]) == DONE


def test_large_rows_are_read_one_by_one(tmp_path, said, monkeypatch):
    path = fill(tmp_path / "s.zarr", KEYS, ROWS, {})
    own = embstore.EmbeddingStore.take
    sizes = []
    monkeypatch.setattr(embstore.EmbeddingStore, "take", lambda *a: sizes.append(len(a[1])) or own(*a))
    said("get", path, *KEYS)
    assert sizes == [1] * 5


# -- keys, classes and paths are data ---------------------------------------------------------


@pytest.fixture
def tricky(tmp_path):
    return fill(tmp_path / "line\nfeed.zarr", TRICKY, np.ones((len(TRICKY), 2), np.float32), {"note": TRICKY})


def test_text_is_a_line_whatever_it_holds(tricky, said):
    shown = [*("two\\nlines:dog", "tab\\tbed:dog", "\\x1b[31mred:dog", "ünï/犬:кот"), "right\\u202eleft:dog"]
    shown.append("no\\u2028line:dog")
    assert said("ls", tricky) == shown
    assert [line.split("  ")[0].rstrip() for line in said("ls", tricky, "--long")] == ["key", *shown]
    assert [line.split(" [")[0] for line in said("get", tricky, *TRICKY)][:2] == shown[:2]
    assert said("info", tricky)[0].endswith("line\\nfeed.zarr")
    assert said("compact", tricky)[0].endswith("line\\nfeed.zarr: 0 deleted rows gone, 6 rows left, 48 B")


def test_json_is_a_line_and_has_it_as_it_is(tricky, said):
    assert [row["key"] for row in said("ls", tricky, "--json")] == TRICKY
    assert [row["note"] for row in said("ls", tricky, "--json")] == TRICKY
    assert [row["key"] for row in said("get", tricky, *TRICKY, "--json")] == TRICKY
    (facts,) = said("info", tricky, "--json")
    assert facts["path"] == tricky
    assert facts["classes"] == {"dog": 5, "кот": 1}


def test_errors_with_odd_names_are_a_line(tmp_path, refused):
    assert "li\\nne" in refused(ABSENT, "info", tmp_path / "li\nne")
    assert "li\\nne" in refused(ABSENT, "cache", "ls", tmp_path / "li\nne")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "ascii:strict"])
def test_terminals_of_any_encoding(tricky, encoding):
    """One process for all commands; a line of dashes ends what each says."""
    commands = {
        "info": ["info", tricky],
        "ls": ["ls", tricky],
        "long": ["ls", tricky, "-l"],
        "more": ["ls", tricky, "-n", "1"],
        "json": ["ls", tricky, "--json"],
        "verify": ["verify", tricky],
        "get": ["get", tricky, "ünï/犬:кот"],
        "absent": ["ls", tricky, "--class", "к"],
    }
    code = (
        f"from embstore.cli import main\nfor words in {list(commands.values())!a}:\n    print(f'--- {{main(words)}}')"
    )
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, cwd=ROOT, env=env, check=True)
    assert b"Traceback" not in done.stderr
    *parts, end = re.split(r"^--- (\d+)\n", done.stdout.decode(encoding.partition(":")[0]), flags=re.M)
    assert end == ""
    statuses = dict(zip(commands, map(int, parts[1::2]), strict=True))
    assert statuses == {**dict.fromkeys(commands, DONE), "absent": ABSENT}
    said = dict(zip(commands, parts[::2], strict=True))
    assert [json.loads(line)["key"] for line in said["json"].split("\n")[:-1]] == TRICKY
    if encoding.startswith("ascii"):
        assert said["get"] == "\\xfcn\\xef/\\u72ac:\\u043a\\u043e\\u0442 [1. 1.]\n"
    if encoding == "utf-8":
        assert said["get"] == "ünï/犬:кот [1. 1.]\n"


def test_paths_that_are_no_text(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.zarr"
    shutil.copytree(fill(tmp_path / "s.zarr"), os.fsdecode(path))
    for words in (["info"], ["info", "--json"], ["verify"], ["verify", "--json"]):
        done = run(words[0], os.fsdecode(path), *words[1:], text=False)
        assert (done.returncode, done.stderr) == (DONE, b"")
        if "--json" in words:
            assert json.loads(done.stdout)["path"] == os.fsdecode(path)
    done = run("get", os.fsdecode(path), os.fsdecode(b"\xff:c"), text=False)
    assert done.returncode == WRONG
    assert done.stderr.count(b"\n") == 1


# -- who reads the output ---------------------------------------------------------------------


@pytest.fixture
def large(tmp_path):
    n = 30_000
    return fill(
        tmp_path / "l.zarr", [f"{'x' * 50}{i}:c" for i in range(n)], np.ones((n, 1), np.float32), {"i": np.arange(n)}
    )


@pytest.mark.parametrize(
    "words", [["ls", "-n", "0"], ["ls", "-l", "-n", "0"], ["ls", "--json", "-n", "0"]], ids=" ".join
)
@pytest.mark.parametrize("buffered", [True, False])
def test_a_reader_that_goes_away(large, words, buffered):
    env = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}
    command = [sys.executable, "-m", "embstore", words[0], large, *words[1:]]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=env)
    assert process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == UNREAD


def test_a_reader_that_was_never_there(store):
    for words in (["info", store], ["ls", store], ["--help"], ["ls", "--help"], ["cache", "nonsense"]):
        reader, writer = os.pipe()
        os.close(reader)
        env = {**os.environ, "PYTHONUNBUFFERED": ""}
        done = run(*words, capture_output=False, stdout=writer, stderr=subprocess.PIPE, env=env)
        os.close(writer)
        assert "Traceback" not in done.stderr
        assert "Exception" not in done.stderr
        assert done.returncode == (WRONG if "nonsense" in words else UNREAD)


def test_no_room_for_the_output(store):
    with open("/dev/full", "w") as full:
        done = run("ls", store, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == AGAIN
    assert done.stderr == "embstore: [Errno 28] No space left on device\n"


def test_no_output_at_all(store):
    for words in (["ls", store], ["ls", store, "-l"], ["info", store, "--json"], ["--help"], ["info", "nowhere"]):
        line = " ".join([sys.executable, "-m embstore", *words, ">&- 2>&- <&-"])
        assert subprocess.run(line, shell=True, cwd=ROOT).returncode == (ABSENT if "nowhere" in words else DONE)


def test_a_terminal_gets_a_table_of_its_width(large, store):
    import pty
    import struct
    import termios
    from fcntl import ioctl

    terminal, end = pty.openpty()
    ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")} | {"TERM": "xterm"}
    for path, rows in ((store, 5), (large, 3)):
        run("ls", path, "-l", "-n", rows, capture_output=False, stdout=end, stderr=subprocess.DEVNULL, env=env)
        lines = os.read(terminal, 65_536).decode().splitlines()
        assert max(len(re.sub("\x1b\\[[0-9;]*m", "", line)) for line in lines) <= 40
        assert "key" in lines[0]
    os.close(terminal)
    os.close(end)


# -- verify, salvage, compact, merge ----------------------------------------------------------


def broken(path, array="embedding"):
    """Flip a bit in the first chunk of an array, and return its file."""
    file = next(Path(path, array).glob("c.0*"))
    flip(file, place=1)
    return str(file)


def test_verify(store, said):
    assert said("verify", store) == [f"{store}: 5 rows, all as they were committed"]
    sound = {"path": store, "ok": True, "rows": 5, "rows_affected": 0, "keys_affected": [], "problems": []}
    assert said("verify", store, "--json") == [sound]
    file = broken(store)
    lines = said("verify", store, status=PARTLY)
    assert lines[0] == f"{store}: 5 of 5 rows affected"
    assert lines[1].startswith(f"  {file}: ")
    (facts,) = said("verify", store, "--json", status=PARTLY)
    assert (facts["ok"], facts["rows_affected"], facts["keys_affected"]) == (False, 5, KEYS)
    assert [(problem["path"], problem["rows"]) for problem in facts["problems"]] == [(file, 5)]


def test_a_damaged_store_is_said_to_be(store, refused):
    broken(store, "split")
    assert "embstore.verify" in refused(BROKEN, "ls", store, "--long")
    (Path(store) / "zarr.json").write_text("{")
    assert "it is not JSON" in refused(BROKEN, "info", store)


def test_salvage(tmp_path, said, refused):
    keys = [f"{i}:c" for i in range(300)]
    store = fill(tmp_path / "s.zarr", keys, np.ones((300, 8), np.float32), {}, chunk_bytes=4096)
    whole = tmp_path / "whole.zarr"
    assert said("salvage", store, whole) == [f"{whole}: 300 rows kept, 0 lost"]
    assert "exists already" in refused(ANOTHER, "salvage", store, whole)
    broken(store)
    part = tmp_path / "part.zarr"
    lines = said("salvage", store, part, status=PARTLY)
    assert lines[0] == f"{part}: 172 rows kept, 128 lost"
    assert lines[1:] == [f"  {key}" for key in keys[:128]]
    assert said("ls", part, "-n", "0") == keys[128:]
    (facts,) = said("salvage", store, tmp_path / "again.zarr", "--json", status=PARTLY)
    counts = {"path": str(tmp_path / "again.zarr"), "rows_kept": 172, "rows_lost": 128}
    assert facts == {**counts, "keys_lost": keys[:128]}


def test_compact(store, said, refused):
    with embstore.open(store, "r+") as opened:
        opened.delete(["a:dog", "c:cat"])
    assert said("compact", store) == [f"{store}: 2 deleted rows gone, 3 rows left, 36 B"]
    assert said("compact", store, "--json") == [{"path": store, "removed": 0, "rows": 3, "nbytes": 36}]
    assert said("ls", store) == ["b:dog", "d:dog", "e:owl"]


def test_merge(tmp_path, store, said, refused):
    other = fill(tmp_path / "other.zarr", ["a:dog", "z:owl"], ROWS[3:], {n: v[:2] for n, v in COLUMNS.items()})
    dest = tmp_path / "dest.zarr"
    assert said("merge", dest, store, "--compression", "zstd") == [f"{dest}: 5 rows added, 0 skipped"]
    assert said("info", dest, "--json")[0]["compression"] == "zstd"
    assert "are stored already" in refused(ANOTHER, "merge", dest, other)
    assert said("merge", dest, other, "--if-exists", "skip", "--json") == [
        {"path": str(dest), "appended": 1, "skipped": 1, "replaced": 0}
    ]
    assert said("merge", dest, other, "--if-exists", "replace") == [
        f"{dest}: 2 rows added, 2 of them in place of others, 0 skipped"
    ]
    assert said("get", dest, "a:dog") == ["a:dog [2.25 2.5  2.75]"]
    refused(WRONG, "merge", dest, other, "--compression", "zip")
    new = tmp_path / "new.zarr"
    assert refused(WRONG, "merge", new, store, other) == "embstore: 1 key(s) occur more than once: 'a:dog'"
    assert said("merge", new, store, other, "--if-exists", "skip") == [f"{new}: 6 rows added, 1 skipped"]
    another = fill(tmp_path / "another.zarr", config={**CONFIG, "duration": 10})
    assert another in refused(ANOTHER, "merge", tmp_path / "none.zarr", store, another)
    assert "nowhere" in refused(ABSENT, "merge", tmp_path / "none.zarr", store, tmp_path / "nowhere")
    assert not (tmp_path / "none.zarr").exists()


# -- nonsense ---------------------------------------------------------------------------------

COMMANDS = {
    "info": ["PLACE"],
    "ls": ["PLACE"],
    "get": ["PLACE", "a:dog"],
    "verify": ["PLACE"],
    "salvage": ["PLACE", "dest"],
    "compact": ["PLACE"],
    "merge": ["dest", "PLACE"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("place", "status"),
    [
        ("nowhere", ABSENT),
        ("folder", ABSENT),
        ("file", ABSENT),
        ("file/under", ABSENT),
        ("zarr.zarr", ABSENT),
        ("loop", WRONG),
        ("x" * 300, WRONG),
        ("", WRONG),
        (" ", WRONG),
    ],
)
def test_what_is_no_store(tmp_path, refused, monkeypatch, command, place, status):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").write_text("x")
    Path("zarr.zarr").mkdir()
    Path("zarr.zarr/zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    Path("loop").symlink_to("loop")
    words = [place if word == "PLACE" else word for word in COMMANDS[command]]
    refused(status, command, *words)
    assert not Path("dest").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "loop", "zarr.zarr"]


@pytest.mark.parametrize("command", [*COMMANDS, "cache", "completion", "import", "export", "plot", "explore"])
def test_too_little_and_too_much(command, refused, capsys):
    for words in ([], ["--nonsense"], ["a", "b", "c", "d", "e", "--nonsense"]):
        assert main([command, *words]) == WRONG
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith(f"Usage: embstore {command} ")

"""Sources: each sample is found once, under its key, with a digest of its content as it is now."""

import collections
import gc
import logging
import os
import subprocess
import sys
import time
import unicodedata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from embstore import errors
from embstore._engine.format.keys import Key
from embstore._engine.io.stamps import UNKNOWN, file_stamp
from embstore.sources import FileSample, Folder, HFDataset, Items, Sample, Table, digest_of
from embstore.sources.base import file_sample, samples_by_key
from embstore.sources.folder import compile_pattern
from embstore.sources.table import as_text

OLD = 10**18  # an mtime in ns, long settled


def write(root, *names, content=b"sound"):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, ns=(OLD, OLD))
    return root


def stamp(path, root=None):
    return file_stamp(str(root or path.parent), path.stat())


def keys(source):
    return [str(sample.key) for sample in source]


def values(source):
    return {str(sample.key): sample.read().value for sample in source}


# -- the package -------------------------------------------------------------------------------


def test_heavy_libraries_are_left_alone(tmp_path):
    write(tmp_path, "dog/1.wav")
    (tmp_path / "list.csv").write_text("file\ndog/1.wav\n")
    code = """if True:
        import sys
        from embstore.sources import Folder, HFDataset, Items, Table
        assert len(list(Folder(sys.argv[1], name="x", suffixes=[".wav"]))) == 1
        assert len(list(Table(sys.argv[1] + "/list.csv", name="x", path="file"))) == 1
        assert len([sample.read() for sample in Items({"a:b": "text"}, name="x")]) == 1
        heavy = {"torch", "transformers", "pandas", "pyarrow", "datasets", "PIL", "av", "zarr"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


@pytest.mark.parametrize("source", [Folder, Table, Items])
def test_a_name_is_required(source, tmp_path):
    options = {"path": "file"} if source is Table else {}
    with pytest.raises(TypeError, match="name"):
        source({}, **options)
    with pytest.raises(TypeError, match="expected the data set's name, found int"):
        source({} if source is not Folder else tmp_path, name=3, **options)
    for name in ("", "  "):
        with pytest.raises(ValueError, match="expected the data set's name"):
            source({} if source is not Folder else tmp_path, name=name, **options)


# -- folders: layouts --------------------------------------------------------------------------


def test_a_folder_a_class(tmp_path, caplog):
    write(tmp_path, "dog/b.wav", "dog/deep/a.flac", "cat/c.tar.gz", ".git/x", "dog/.hidden", "README", "LICENCE")
    source = Folder(tmp_path, name="VEGAS")
    with caplog.at_level(logging.WARNING, "embstore"):
        found = list(source)
    assert keys(found) == ["cat/c.tar:cat", "dog/b:dog", "dog/deep/a:dog"]
    assert "2 file(s) beside the folders of the classes are left out" in caplog.text
    assert (source.name, source.root) == ("VEGAS", tmp_path)
    assert repr(source) == f"<Folder 'VEGAS': {str(tmp_path)!r}>"
    assert found[1] == FileSample(Key("dog/b", "dog"), tmp_path / "dog/b.wav", stamp(tmp_path / "dog/b.wav", tmp_path))
    assert found[1].where == str(tmp_path / "dog/b.wav")
    assert found[1].read() == (b"sound", digest_of(b"sound"), found[1].stamp)
    assert found[1].stamp[:2] == (5, OLD)
    write(tmp_path, "cow/a.wav")
    assert len(list(source)) == 4  # each iteration looks again


def test_a_folder_without_classes(tmp_path, caplog):
    write(tmp_path, "b.wav", "a.wav", "notes/about.txt")
    (tmp_path / "empty").mkdir()
    with caplog.at_level(logging.WARNING, "embstore"):
        assert keys(Folder(tmp_path, name="x", suffixes=[".wav"])) == ["a", "b"]
    assert not caplog.records


def test_sorted_by_relative_path(tmp_path):
    write(tmp_path, "a/b/z", "a-b/x", "a/a", "B/y", "a.d/x")
    assert keys(Folder(tmp_path, name="x")) == ["B/y:B", "a-b/x:a-b", "a.d/x:a.d", "a/a:a", "a/b/z:a"]


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("{class}_*.flac", "tabla_dhec.flac", ("tabla", None)),
        ("{class}_*.flac", "ambi_lunar_land.flac", ("ambi", None)),
        ("{class}_*.flac", "deep/tabla_dhec.flac", None),
        ("{class}_*.flac", "_dhec.flac", None),
        ("{class}_{file_id}.wav", "a_b_c.wav", ("a", "b_c")),
        ("*_{class}.wav", "a_b_c.wav", ("c", None)),
        ("{class}/**/*.wav", "dog/1.wav", ("dog", None)),
        ("{class}/**/*.wav", "dog/a/b/1.wav", ("dog", None)),
        ("{class}/**/*.wav", "1.wav", None),
        ("**/{class}/*", "a/b/dog/1.wav", ("dog", None)),
        ("**/{class}/*", "dog/1.wav", ("dog", None)),
        ("{class}/**", "dog/a/1.wav", ("dog", None)),
        ("audio/{file_id}.{class}.ogg", "audio/x.y.dog.ogg", ("dog", "x.y")),
        ("audio/{file_id}.{class}.ogg", "audio/deep/x.dog.ogg", ("dog", "deep/x")),
        ("{file_id}.wav", "a/b.wav", (None, "a/b")),
        ("**.wav", "a/b.wav", (None, None)),
        ("*.wav", "a/b.wav", None),
        ("*.wav", ".wav", (None, None)),
        ("a+(b)[c].wav", "a+(b)[c].wav", (None, None)),
        ("a?.wav", "ab.wav", None),
        ("{class}.wav", "two\nlines.wav", ("two\nlines", None)),
        ("{class}.WAV", "a.wav", None),
    ],
)
def test_patterns(pattern, path, expected):
    fit = compile_pattern(pattern).fullmatch(path)
    found = None if fit is None else (fit.groupdict().get("class"), fit.groupdict().get("file_id"))
    assert found == expected


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{label}/*", r"there is no \{label\}"),
        ("{}/*", r"there is no \{\}"),
        ("{class}/{class}", r"\{class\} stands in it twice"),
        ("{file_id}/{file_id}", r"\{file_id\} stands in it twice"),
    ],
)
def test_patterns_that_are_refused(tmp_path, pattern, message):
    with pytest.raises(ValueError, match=message):
        Folder(tmp_path, name="x", pattern=pattern)


def test_a_pattern_gives_keys(tmp_path, caplog):
    write(tmp_path, "tabla_dhec.flac", "tabla_na.FLAC", "bd_haus.flac", "README.md")
    with caplog.at_level(logging.INFO, "embstore"):
        found = keys(Folder(tmp_path, name="x", pattern="{class}_*.*"))
    assert found == ["bd_haus:bd", "tabla_dhec:tabla", "tabla_na:tabla"]
    assert "1 of 4 file(s) are left out: they don't fit '{class}_*.*'" in caplog.text
    assert keys(Folder(tmp_path, name="x", pattern="*.flac")) == ["bd_haus", "tabla_dhec"]
    assert keys(Folder(tmp_path, name="x", pattern="{class}_{file_id}.flac")) == ["haus:bd", "dhec:tabla"]
    found = keys(Folder(tmp_path, name="x", pattern="{class}_*.*", suffixes=[".Flac"], file_id=lambda path: path.name))
    assert found == ["bd_haus.flac:bd", "tabla_dhec.flac:tabla", "tabla_na.FLAC:tabla"]
    with pytest.raises(ValueError, match="leave out file_id="):
        Folder(tmp_path, name="x", pattern="{file_id}.wav", file_id=str)


def test_suffixes_that_are_refused(tmp_path):
    with pytest.raises(TypeError, match="expected a list of suffixes"):
        Folder(tmp_path, name="x", suffixes=".wav")
    with pytest.raises(ValueError, match=r"expected suffixes such as '\.wav', found 'wav'"):
        Folder(tmp_path, name="x", suffixes=["wav"])


# -- folders: what is no sample ----------------------------------------------------------------


def test_nothing_to_take(tmp_path):
    write(tmp_path / "data", "dog/a.txt")
    (tmp_path / "none").mkdir()
    for source, reason in [
        (Folder(tmp_path / "absent", name="x"), "there is no such folder"),
        (Folder(tmp_path / "data/dog/a.txt", name="x"), "it is a file"),
        (Folder(tmp_path / "none", name="x"), "there are no files in it"),
        (Folder(tmp_path / "data", name="x", suffixes=[".wav"]), "none of its 1 file(s) is one of those that end in"),
        (Folder(tmp_path / "data", name="x", pattern="*.txt"), "none of its 1 file(s) is one of those that fit"),
    ]:
        with pytest.raises(errors.EmptySourceError) as caught:
            list(source)
        assert caught.value.reason.startswith(reason)
        assert caught.value.path == source.root


def test_two_files_of_one_key(tmp_path):
    write(tmp_path, "dog/a.wav", "dog/a.flac")
    with pytest.raises(errors.DuplicateKeysError) as caught:
        list(Folder(tmp_path, name="x"))
    assert caught.value.keys == ("dog/a:dog",)
    assert caught.value.found_at == (str(tmp_path / "dog/a.flac"), str(tmp_path / "dog/a.wav"))
    assert "a.flac and " in str(caught.value)


def test_names_that_make_no_key(tmp_path):
    write(tmp_path, "a:b/1.wav")
    with pytest.raises(errors.SourceError, match=r"/a:b/1\.wav: there is a colon in the class"):
        list(Folder(tmp_path, name="x"))
    assert keys(Folder(tmp_path, name="x", pattern="**")) == ["a:b/1:_"]  # in a file_id, colons may stand
    with pytest.raises(errors.SourceError, match=r"/1\.wav: the file_id is empty"):
        list(Folder(tmp_path, name="x", pattern="**", file_id=lambda path: ""))
    with pytest.raises(errors.SourceError, match="expected text in both parts, found int"):
        list(Folder(tmp_path, name="x", pattern="**", file_id=lambda path: 7))


@pytest.mark.skipif(sys.platform != "linux", reason="macOS refuses such names")
def test_a_name_that_is_not_utf8(tmp_path):
    write(tmp_path, "dog/good.wav")
    bad = os.fsencode(tmp_path) + b"/dog/\xff.wav"
    with open(bad, "wb"):
        pass
    with pytest.raises(errors.SourceError, match=r"/dog/\\udcff\.wav: .*not valid Unicode text") as caught:
        list(Folder(tmp_path, name="x"))
    str(caught.value).encode()  # the message can be printed
    assert keys(Folder(tmp_path, name="x", pattern="{class}/g*")) == ["dog/good:dog"]  # it may be left out


def test_unicode_forms_are_kept_apart(tmp_path):
    names = [unicodedata.normalize(form, "dog/é.wav") for form in ("NFC", "NFD")]
    write(tmp_path, *names)
    if len(list((tmp_path / "dog").iterdir())) < 2:
        pytest.skip("this file system keeps one form only")
    assert sorted(keys(Folder(tmp_path, name="x"))) == sorted(f"{name[:-4]}:dog" for name in names)


def test_links(tmp_path):
    root = tmp_path / "root"
    write(root, "dog/a.wav")
    write(tmp_path, "elsewhere/b.wav", "c.wav")
    (root / "cat").symlink_to(tmp_path / "elsewhere")
    (root / "dog/c.wav").symlink_to(tmp_path / "c.wav")
    (root / "dog/up").symlink_to(root)
    (tmp_path / "elsewhere/self").symlink_to(".")
    (root / "dog/gone.wav").symlink_to(tmp_path / "gone.wav")
    (root / "dog/loop.wav").symlink_to("loop.wav")
    (tmp_path / "link").symlink_to(root)
    found = {str(sample.key): sample for sample in Folder(tmp_path / "link", name="x")}
    assert list(found) == ["cat/b:cat", "dog/a:dog", "dog/c:dog", "dog/gone:dog", "dog/loop:dog"]
    assert found["cat/b:cat"].path == tmp_path / "link/cat/b.wav"
    assert found["dog/c:dog"].stamp[:2] == (5, OLD)
    for key in ("dog/gone:dog", "dog/loop:dog"):
        assert found[key].stamp == UNKNOWN
        with pytest.raises(errors.SampleError) as caught:
            found[key].read()
        assert caught.value.path == found[key].path


def test_pipes_are_left_out(tmp_path):
    write(tmp_path, "a.wav")
    os.mkfifo(tmp_path / "b.wav")
    (tmp_path / "c.wav").symlink_to(tmp_path / "b.wav")
    assert keys(Folder(tmp_path, name="x")) == ["a"]


def a_folder_that_cannot_be_listed(root, monkeypatch):
    write(root, "private/1.wav")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("private"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    return "private"


def a_class_with_a_colon(root, monkeypatch):
    write(root, "c:d/1.wav")
    return "c:d"


def a_name_that_is_not_text(root, monkeypatch):
    with open(os.fsencode(root) + b"/dog/\xff.wav", "wb"):
        pass
    return "dog/\udcff.wav"


def a_folder_that_is_not_text(root, monkeypatch):
    os.makedirs(os.fsencode(root) + b"/\xfe")
    with open(os.fsencode(root) + b"/\xfe/1.wav", "wb"):
        pass
    return "\udcfe"


BAD_PARTS = [a_folder_that_cannot_be_listed, a_class_with_a_colon]
if sys.platform == "linux":  # macOS refuses such names
    BAD_PARTS += [a_name_that_is_not_text, a_folder_that_is_not_text]


@pytest.mark.parametrize(
    "bad", [*([one] for one in BAD_PARTS), BAD_PARTS], ids=lambda bad: f"{len(bad)} {bad[0].__name__}"
)
def test_one_error_names_all_that_makes_no_sample_and_the_rest_may_be_taken(tmp_path, monkeypatch, bad):
    write(tmp_path, "dog/1.wav", "cat/1.wav", "lost+found/x")
    names = [one(tmp_path, monkeypatch) for one in bad]
    with pytest.raises(errors.SourceError, match="leave them out with exclude=") as caught:
        list(Folder(tmp_path, name="x"))
    assert (len(caught.value.problems), caught.value.path) == (len(names), tmp_path)
    for name in names:
        assert any(f"{tmp_path}/{name}" in problem for problem in caught.value.problems)
        assert repr(name)[1:-1] in str(caught.value)
    str(caught.value).encode()  # the message can be printed
    assert keys(Folder(tmp_path, name="x", exclude=["lost+found", *names])) == ["cat/1:cat", "dog/1:dog"]


def test_one_error_names_all_keys_that_occur_twice(tmp_path):
    write(tmp_path, "1.mp3", "1.txt", "2.mp3", "2.txt", "3.mp3")
    with pytest.raises(
        errors.DuplicateKeysError, match=r"take files of one kind, as with suffixes=\['\.wav'\]"
    ) as caught:
        list(Folder(tmp_path, name="x"))
    assert caught.value.keys == ("1", "2")
    assert caught.value.found_at == (str(tmp_path / "1.mp3"), str(tmp_path / "1.txt"))
    assert len(keys(Folder(tmp_path, name="x", suffixes=[".mp3"]))) == 3
    assert len(keys(Folder(tmp_path, name="x", file_id=str))) == 5


BAD_ROWS = [{"id": None, "says": "a"}, {"id": ["b"], "says": "b"}, {"id": 3, "says": "c", "label": "d:e"}]


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda: Table([*BAD_ROWS, *ROWS], name="x", text="says", class_name="label", file_id="id"), "with file_id="),
        (lambda: Items([(None, 1), (["b"], 2), ("no class:", 3), ("a:b", 4)], name="x"), "rename"),
        (lambda: bad_rows_of_hf(), "name a file_id column"),
    ],
    ids=["table", "items", "datasets"],
)  # fmt: skip
def test_one_error_names_all_rows_without_a_key(make, hint):
    with pytest.raises(errors.SourceError, match=hint) as caught:
        list(make())
    assert len(caught.value.problems) == 3


def bad_rows_of_hf():
    hf = pytest.importorskip("datasets")
    made = hf.Dataset.from_dict({"id": ["", None, "c", "d"], "says": [*"abcd"], "kind": ["x", "x", "y:z", "x"]})
    return HFDataset(made, name="x", content="says", file_id="id", class_name="kind")


def test_an_error_of_file_id_names_the_file(tmp_path):
    write(tmp_path, "1.wav", "a.wav")
    with pytest.raises(ValueError, match="invalid literal") as caught:
        list(Folder(tmp_path, name="x", file_id=lambda path: str(int(path.stem))))
    assert caught.value.__notes__ == [f"found at {str(tmp_path / 'a.wav')!r}"]


@pytest.mark.parametrize("source", [[("a:b", 1)], {"a:b": 1}, Folder, None, 3, "folder", Path("folder")])
def test_an_object_that_is_no_source(source):
    with pytest.raises(
        TypeError, match=r"expected a source with a name, found .*embstore\.sources\.Items\(…, name=…\)"
    ):
        samples_by_key(source)


def test_a_source_of_things_that_are_no_samples():
    class Pairs(list):
        name = "x"

    with pytest.raises(TypeError, match=r"expected samples in the source, such as embstore\.Sample, found tuple"):
        samples_by_key(Pairs([("a:b", 1)]))


def test_ten_thousand_files_are_looked_at_once(tmp_path, monkeypatch):
    for number in range(20):
        folder = tmp_path / f"class_{number:02d}"
        folder.mkdir()
        for file in range(500):
            (folder / f"{file:03d}.wav").touch()
    calls = collections.Counter()

    def counted(name):
        original = getattr(os, name)

        def call(*args, **kwargs):
            calls[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    for name in ("stat", "lstat", "scandir", "open"):
        counted(name)
    found = list(Folder(tmp_path, name="x"))
    assert len(found) == 10_000
    assert found[0].stamp == stamp(tmp_path / "class_00/000.wav", tmp_path)
    # Each file is looked at through its entry; only folders by their path.
    assert calls["scandir"] <= 21
    assert calls["stat"] + calls["lstat"] + calls["open"] < 100


# -- files -------------------------------------------------------------------------------------


def test_a_file_that_changed(tmp_path):
    write(tmp_path, "a.wav")
    (sample,) = Folder(tmp_path, name="x")
    before = sample.read()
    assert before.stamp == sample.stamp
    write(tmp_path, "a.wav", content=b"other")
    assert sample.current_digest() == sample.read().digest == digest_of(b"other") != before.digest
    (tmp_path / "a.wav").unlink()
    with pytest.raises(errors.SampleError, match=r"a\.wav: No such file") as caught:
        sample.current_digest()
    assert caught.value.path == tmp_path / "a.wav"


@pytest.fixture
def opened(monkeypatch):
    """Call a function just after the next file was opened."""

    def opened(work):
        real, calls = os.fstat, [work]

        def fstat(descriptor):
            found = real(descriptor)
            if calls:
                calls.pop()()
            return found

        monkeypatch.setattr("embstore.sources.base.os.fstat", fstat)

    return opened


@pytest.mark.parametrize("content", [b"sounds", b"s", b"SOUND"], ids=["longer", "shorter", "same size"])
def test_a_file_that_changes_while_it_is_read(tmp_path, opened, content):
    write(tmp_path, "a.wav")
    (sample,) = Folder(tmp_path, name="x")
    opened(lambda: (tmp_path / "a.wav").write_bytes(content))
    with pytest.raises(errors.SampleError, match="it changed while it was read"):
        sample.read()


def test_a_file_that_is_replaced_while_it_is_read(tmp_path, opened):
    write(tmp_path, "a.wav")
    write(tmp_path, "new", content=b"other")
    (sample,) = Folder(tmp_path, name="x", suffixes=[".wav"])
    opened(lambda: (tmp_path / "new").rename(tmp_path / "a.wav"))
    # All of it is of the file that was opened: no digest or stamp of one beside the bytes of the other.
    assert sample.read() == (b"sound", digest_of(b"sound"), sample.stamp)
    assert sample.read().value == b"other"


def test_a_file_changed_just_now_has_no_stamp(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(b"sound")
    for mtime, settled in [(time.time_ns(), False), (time.time_ns() + 10**12, False), (OLD, True)]:
        os.utime(path, ns=(mtime, mtime))
        content = file_sample("a:b", path).read()
        assert content.digest == digest_of(b"sound")
        assert content.stamp[:2] == ((5, mtime) if settled else UNKNOWN[:2])
        assert content.stamp.identity == stamp(path).identity  # its origin is known


# -- tables ------------------------------------------------------------------------------------

ROWS = [
    {"id": 1, "says": "It barks.", "label": "dog"},
    {"id": 2, "says": "It purrs.", "label": None},
    {"id": 3, "says": "", "label": "dog"},
]
SAID = {"1:dog": "It barks.", "2": "It purrs.", "3:dog": ""}


class PolarsLike:
    """A frame with polars' words for these things."""

    columns = ("id", "says", "label")

    def __getitem__(self, name):
        return Series([row[name] for row in ROWS])


class Series:
    def __init__(self, found):
        self.to_list = lambda: found


def as_mapping():
    return {name: [row[name] for row in ROWS] for name in ROWS[0]}


def as_frame():
    return pytest.importorskip("pandas").DataFrame(ROWS)


@pytest.mark.parametrize("make", [lambda: ROWS, as_mapping, as_frame, PolarsLike])
def test_tables_in_memory(make):
    table = make()
    source = Table(table, name="pets", text="says", class_name="label", file_id="id")
    assert values(source) == values(source) == SAID
    assert repr(source) == f"<Table 'pets': {type(table).__name__}>"
    assert source.root == Path.cwd()
    first = next(iter(source))
    assert (first.where, first.stamp) == ("row 1 of the table", UNKNOWN)
    assert first.current_digest() == first.read().digest == digest_of("It barks.")


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_text_tables(tmp_path, delimiter, encoding):
    path = tmp_path / {",": "a.csv", "\t": "a.TSV", ";": "a.txt"}[delimiter]
    lines = ["id,says,label", "1,It barks.,dog", '2,"It\n""purrs"".",', "", "03,é,3"]
    text = "\n".join(lines).replace(",", delimiter)
    path.write_text(text, encoding=encoding)
    options = {"delimiter": ";"} if delimiter == ";" else {}
    source = Table(path, name="pets", text="says", class_name="label", file_id="id", **options)
    assert values(source) == {"1:dog": "It barks.", "2": 'It\n"purrs".', "03:3": "é"}
    assert [sample.where for sample in source] == [f"row {n} of {path.name}" for n in (1, 2, 3)]
    assert repr(source) == f"<Table 'pets': {str(path)!r}>"
    path.write_text(f"id{delimiter}says{delimiter}label\n9{delimiter}new{delimiter}x\n")
    assert values(source) == {"9:x": "new"}  # each iteration reads it again


def test_parquet(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    folder = tmp_path / "split=train"
    folder.mkdir()
    frame = pandas.DataFrame({"id": [1, 2], "says": ["a", "b"], "label": [3, None], "kind": ["x", "y"]})
    frame.astype({"kind": "category"}).to_parquet(folder / "a.parquet")
    options = {"name": "x", "text": "says", "file_id": "id"}
    assert values(Table(folder / "a.parquet", class_name="label", **options)) == {"1:3": "a", "2": "b"}
    assert keys(Table(folder / "a.parquet", class_name="kind", **options)) == ["1:x", "2:y"]
    with pytest.raises(errors.UnknownColumnError) as caught:
        list(Table(folder / "a.parquet", class_name="split", **options))
    assert caught.value.available[:4] == ("id", "says", "label", "kind")


def test_pyarrow_is_asked_for(tmp_path, monkeypatch):
    write(tmp_path, "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'embstore\[tables\]'"):
        list(Table(tmp_path / "a.parquet", name="x", path="file"))


def test_a_table_of_files(tmp_path):
    write(tmp_path, "audio/a.wav", "audio/b.b.wav")
    table = tmp_path / "list.csv"
    rows = ["./audio/a.wav", "audio/b.b.wav", str(tmp_path / "audio/c.wav"), "/other/d.wav", "audio"]
    table.write_text("file\n" + "\n".join(rows))
    source = Table(table, name="x", path="file")
    found = {str(sample.key): sample for sample in source}
    assert list(found) == ["audio/a", "audio/b.b", "audio/c", "/other/d", "audio"]
    assert found["audio/a"] == FileSample(
        Key("audio/a", "_"), tmp_path / "audio/a.wav", stamp(tmp_path / "audio/a.wav", tmp_path)
    )
    for key, reason in [("audio/c", "No such file"), ("/other/d", "No such file"), ("audio", "Is a directory")]:
        assert (found[key].stamp == UNKNOWN) is (key != "audio")
        with pytest.raises(errors.SampleError, match=reason) as caught:
            found[key].current_digest()
        assert caught.value.path is not None
    write(tmp_path, "root/audio/a.wav", content=b"another")
    source = Table([{"file": "audio/a.wav"}], name="x", path="file", root=tmp_path / "root")
    assert values(source) == {"audio/a": b"another"}


def test_rows_without_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "a.wav")
    rows = [{"id": 1, "file": "a.wav"}, {"id": 2, "file": None}, {"id": 3, "file": "a\0b"}]
    found = list(Table(rows, name="x", path="file", file_id="id"))
    assert [found[0].read().value, found[1].where] == [b"sound", "row 2 of the table"]
    for sample, reason in zip(found[1:], ["no file is named", "null"], strict=True):
        with pytest.raises(errors.SampleError, match=reason):
            sample.read()
    with pytest.raises(errors.SourceError, match=r"row 2 of the table \(None\): the file_id is empty"):
        list(Table(rows, name="x", path="file"))


def test_a_pipe_is_no_file_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    (sample,) = Table([{"file": "a.wav"}], name="x", path="file", root=tmp_path)
    with pytest.raises(errors.SampleError, match="it is not a file"):
        sample.read()


def test_rows_without_a_text():
    rows = [{"id": 1, "says": None}, {"id": 2, "says": 5}, {"id": 3, "says": "\ud800"}]
    reasons = ["expected text, found nothing", "expected text, found int", "not valid Unicode"]
    for sample, reason in zip(Table(rows, name="x", text="says", file_id="id"), reasons, strict=True):
        with pytest.raises(errors.SampleError, match=reason):
            sample.current_digest()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("dog", "dog"), (" dog", " dog"), ("", ""), ("nan", "nan"), (3, "3"), (3.0, "3"), (-0.0, "0"), (2.5, "2.5"),
        (np.float32("nan"), ""), (1e300, "1e+300"), (True, "True"), (None, ""), (float("nan"), ""),
        (np.float32(3), "3"), (np.int64(3), "3"), (np.str_("dog"), "dog"), (Path("a/b"), "a/b"),
    ],
)  # fmt: skip
def test_cells_as_text(value, text):
    assert as_text(value) == text


@pytest.mark.parametrize("value", [["a", "b"], {"a": 1}, b"dog", np.zeros(2)])
def test_cells_that_make_no_key(value):
    with pytest.raises(errors.KeyFormatError, match=r"expected text or a number, found "):
        as_text(value)


def test_missing_classes_of_pandas():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"id": [1, 2, 3], "says": ["a", "b", "c"]})
    for label in (
        [7, None, 8],
        pandas.array([7, None, 8], dtype="Int64"),
        pandas.Categorical(["7", None, "8"]),
        pandas.array(["7", None, "8"], dtype="string"),
    ):
        source = Table(frame.assign(label=label), name="x", text="says", class_name="label", file_id="id")
        assert keys(source) == ["1:7", "2", "3:8"]
    times = pandas.to_datetime(["2026-01-01", None, "2026-01-02"]).date
    source = Table(frame.assign(label=times), name="x", text="says", class_name="label", file_id="id")
    assert keys(source) == ["1:2026-01-01", "2", "3:2026-01-02"]


def test_duplicate_rows(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("file,label\na.wav,dog\nb.wav,dog\na.flac,dog\n")
    with pytest.raises(errors.DuplicateKeysError) as caught:
        list(Table(path, name="x", path="file", class_name="label"))
    assert caught.value.found_at == ("row 1 of labels.csv (a.wav)", "row 3 of labels.csv (a.flac)")
    assert (caught.value.keys, caught.value.path) == (("a:dog",), path)
    rows = [{"id": 1, "says": "a"}, {"id": "1", "says": "b"}]
    with pytest.raises(errors.DuplicateKeysError, match="row 1 of the table and row 2 of the table"):
        list(Table(rows, name="x", text="says", file_id="id"))


def test_tables_that_are_refused(tmp_path):
    for options in ({}, {"path": "a", "text": "b"}):
        with pytest.raises(ValueError, match="expected either path="):
            Table({}, name="x", **options)
    with pytest.raises(ValueError, match="name a file_id column: a row's number changes"):
        Table({}, name="x", text="says")
    with pytest.raises(ValueError, match=r"expected \.csv, \.tsv or \.parquet"):
        Table("a.xlsx", name="x", path="file")
    for table in ("a.parquet", {}):
        with pytest.raises(ValueError, match="delimiter is for text files"):
            Table(table, name="x", path="file", delimiter=",")
    for table in (7, [1, 2], b"a.csv"):
        with pytest.raises(TypeError, match="expected a path, a DataFrame"):
            Table(table, name="x", path="file")
    with pytest.raises(ValueError, match="expected columns of one length"):
        list(Table({"a": [1], "b": [1, 2]}, name="x", path="a", file_id="b"))


@pytest.mark.parametrize(
    ("table", "available"),
    [([{"a": 1}, {"b": 1}], ("a", "b")), ({"a": [1]}, ("a",)), (PolarsLike(), PolarsLike.columns)],
)
def test_columns_that_are_not_there(table, available):
    with pytest.raises(errors.UnknownColumnError) as caught:
        list(Table(table, name="x", path=available[0], class_name="kind"))
    assert (caught.value.column, caught.value.available) == ("kind", available)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, errors.EmptySourceError, "there is no such file"),
        (b"file,label\n", errors.EmptySourceError, "it has no rows"),
        (b"", errors.UnknownColumnError, "no column 'file'"),
        (b"name,label\na,b\n", errors.UnknownColumnError, "no column 'file' in .*a.csv; columns: name, label"),
        (b"file,label\na,b\nc\n", errors.SourceError, "row 2 of .*a.csv has 1 cell.s., the header has 2"),
        (
            b"file,label\na\na,b\na,b,c\n",
            errors.SourceError,
            "row 1 of .*row 3 of .* has 3 cell.s., the header",
        ),
        (b"file,label\na,b\n\xff,d\n", ValueError, "a.csv is not UTF-8 text"),
        (b"file,label,label\na,b,c\n", ValueError, "has several columns 'label'"),
        (b"file,label\na," + b"b" * 140_000, ValueError, "after row 0: field larger than .* csv.field_size_limit"),
    ],
)
def test_text_tables_that_are_refused(tmp_path, content, error, message):
    if content is not None:
        (tmp_path / "a.csv").write_bytes(content)
    source = Table(tmp_path / "a.csv", name="x", path="file", class_name="label")
    with pytest.raises(error, match=message):
        list(source)


# -- data sets of Hugging Face -----------------------------------------------------------------


@pytest.fixture
def hf(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hf = pytest.importorskip("datasets")
    hf.disable_progress_bars()
    return hf


@pytest.fixture
def sounds(hf, tmp_path):
    write(tmp_path, "c.wav", content=b"three")
    files = [
        {"bytes": b"one", "path": "x/a.wav"},
        {"bytes": b"two", "path": "/y/b.wav"},
        {"bytes": None, "path": str(tmp_path / "c.wav")},
        {"bytes": None, "path": str(tmp_path / "d.wav")},
        {"bytes": None, "path": "https://example.org/e.wav"},
    ]
    table = {"audio": files, "label": [0, 1, -1, None, 0], "id": [7, 8, 9, 10, 11]}
    made = hf.Dataset.from_dict(table).cast_column("audio", hf.Audio())
    return made.cast_column("label", hf.ClassLabel(names=["dog", "cat"]))


def test_sounds_are_not_decoded(sounds):
    source = HFDataset(sounds, name="pets", content="audio", class_name="label")
    assert (len(source), repr(source)) == (5, "<HFDataset 'pets': 5 row(s)>")
    found = list(source)
    assert keys(source) == keys(found) == ["a:dog", "b:cat", "c", "d", "e:dog"]
    assert [sample.read().value for sample in found[:3]] == [b"one", b"two", b"three"]
    assert found[2].current_digest() == digest_of(b"three")
    assert (found[1].where, found[1].stamp) == ("pets[1]", UNKNOWN)
    for sample, reason in zip(found[3:], ["No such file", "not on this machine: https://"], strict=True):
        with pytest.raises(errors.SampleError, match=reason):
            sample.read()
    assert keys(HFDataset(sounds, name="pets", content="audio", file_id="id"))[0] == "7"


def test_order_and_format_change_nothing(sounds):
    plain = HFDataset(sounds, name="pets", content="audio", class_name="label")
    other = sounds.shuffle(seed=1).with_format("numpy", columns=["id"])
    other = HFDataset(other, name="pets", content="audio", class_name="label")
    digests = [
        {str(sample.key): sample.current_digest() for sample in source if str(sample.key) in ("a:dog", "b:cat", "c")}
        for source in (plain, other)
    ]
    assert digests[0] == digests[1]


def test_images_and_the_disk(hf, tmp_path):
    write(tmp_path, "dog.png", content=b"an image, perhaps")
    made = hf.Dataset.from_dict({"image": [str(tmp_path / "dog.png")]}).cast_column("image", hf.Image())
    made.save_to_disk(tmp_path / "saved")
    source = HFDataset(hf.load_from_disk(tmp_path / "saved"), name="x", content="image")
    assert list(values(source)) == ["dog"]
    assert values(source)["dog"] == b"an image, perhaps"


def test_texts_and_bytes(hf):
    made = hf.Dataset.from_dict({"says": ["a", None], "raw": [b"1", None], "id": ["x", "y"], "kind": [1, None]})
    for column, value in (("says", "a"), ("raw", b"1")):
        source = HFDataset(made, name="x", content=column, file_id="id", class_name="kind")
        assert keys(source) == ["x:1", "y"]
        first, second = source
        assert first.read() == (value, digest_of(value), UNKNOWN)
        with pytest.raises(errors.SampleError, match="found nothing"):
            second.read()


def test_rows_are_loaded_when_they_are_asked_for(hf, monkeypatch):
    made = hf.Dataset.from_dict({"says": ["a", "b"], "id": ["x", "y"]})
    read = []
    real = type(made).__getitem__

    def getitem(self, which):
        read.extend((which, name) for name in self.column_names)
        return real(self, which)

    monkeypatch.setattr(type(made), "__getitem__", getitem)
    found = list(HFDataset(made, name="x", content="says", file_id="id"))
    assert "says" not in [name for _, name in read]
    found[1].read()
    assert read[-1] == (1, "says")


def test_data_sets_that_are_refused(hf, sounds):
    made = hf.Dataset.from_dict({"says": ["a", "b"], "id": ["x", "x"], "number": [1, 2], "tags": [["a"], ["b"]]})
    for dataset, options, error, message in [
        (hf.DatasetDict(train=made, test=made), {"content": "says"}, TypeError, "choose a split.*train, test"),
        (made.to_iterable_dataset(), {"content": "says"}, TypeError, "load it without streaming"),
        ([1], {"content": "says"}, TypeError, "expected a datasets.Dataset, found list"),
        (made, {"content": "text"}, errors.UnknownColumnError, "no column 'text'"),
        (made, {"content": "says", "file_id": "key"}, errors.UnknownColumnError, "no column 'key'"),
        (made, {"content": "number", "file_id": "id"}, TypeError, "expected texts, bytes, Audio or Image"),
        (made, {"content": "tags", "file_id": "id"}, TypeError, "expected texts, bytes, Audio or Image"),
        (made, {"content": "says"}, ValueError, "name a file_id column"),
        (made, {"content": "says", "file_id": "id"}, errors.DuplicateKeysError, r"x\[0\] and x\[1\]"),
        (made, {"content": "says", "file_id": "number", "class_name": "tags"}, errors.SourceError, "found list"),
        (made.select([]), {"content": "says", "file_id": "id"}, errors.EmptySourceError, "x has no rows"),
    ]:
        with pytest.raises(error, match=message):
            list(HFDataset(dataset, name="x", **options))
    nameless = hf.Dataset.from_dict({"audio": [{"bytes": b"one", "path": None}, {"bytes": None, "path": None}]})
    nameless = nameless.cast_column("audio", hf.Audio(decode=False)).add_column("id", [1, 2])
    with pytest.raises(errors.SourceError, match=r"x\[0\]: the file_id is empty.*name a file_id column"):
        list(HFDataset(nameless, name="x", content="audio"))
    first, second = HFDataset(nameless, name="x", content="audio", file_id="id")
    assert first.read().value == b"one"
    with pytest.raises(errors.SampleError, match="neither bytes nor a path"):
        second.read()


# -- items -------------------------------------------------------------------------------------


def digest(content):
    (sample,) = Items({"a:b": content}, name="x")
    assert sample.current_digest() == sample.read().digest
    return sample.read().digest


def test_items():
    contents = {"a:dog": "text", Key("b", "cat"): b"bytes"}
    for items in (contents, list(contents.items()), zip(contents, contents.values(), strict=True)):
        source = Items(items, name="pets")
        assert values(source) == values(source) == {"a:dog": "text", "b:cat": b"bytes"}
        assert (len(source), repr(source)) == (2, "<Items 'pets': 2 item(s)>")
    first = next(iter(source))
    assert (first.key, first.where, first.stamp) == (Key("a", "dog"), "a:dog", UNKNOWN)


def test_text_and_bytes_have_the_digest_of_a_file():
    assert digest("é") == digest("é".encode()) == digest_of("é")


class Point(NamedTuple):
    x: object
    y: object


ALIKE = [
    (np.arange(6, dtype="<f4").reshape(2, 3), np.asfortranarray(np.arange(6, dtype="<f4").reshape(2, 3))),
    (np.arange(6)[::2], np.array([0, 2, 4])),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    ((1, 2), Point(1, 2)),
    (bytearray(b"ab"), memoryview(b"ab")),
]


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_the_same_content_has_the_same_digest(one, other):
    assert digest(one) == digest(other)


def test_other_content_has_another_digest():
    array = np.arange(6, dtype="<f4")
    contents = [
        array, array + 1, array.reshape(2, 3), array.reshape(3, 2), array.astype("<f8"), array.astype(">f4"),
        array.view("<i4"), array.tobytes(), array[:0], array[:0].reshape(0, 7), array[:0].astype("<i4"),
        (array, 16_000), (array, 16_000.0), (array, 8_000), [array, 16_000], (array, (16_000,)), ((array, 16_000),),
        (array,), {"array": array, "rate": 16_000}, {"array": array, "hertz": 16_000}, (), [], {}, None, True, 1, 1.0,
        "1", (b"1",), ("1",), ("ab", "c"), ("a", "bc"), ("abc",), np.float32(1), np.array(["a", "b"]),
        np.array(["2026-01-01"], dtype="M8[D]"), np.array(["2026-01-01"], dtype="M8[s]"), np.array(True),
    ]  # fmt: skip
    assert len({digest(content) for content in contents}) == len(contents)


def test_bytes_that_spell_an_array_are_not_one():
    array = np.arange(2, dtype="<i2")
    assert digest(array) != digest(b"array <i2 (2,)\0" + array.tobytes())


def test_items_may_be_changed_in_place():
    array = np.zeros(3, np.float32)
    (sample,) = Items([("a:b", (array, 16_000))], name="x")
    before = sample.read()
    array[:] = 1
    assert sample.current_digest() == sample.read().digest != before.digest
    waveform, rate = before.value
    assert (waveform.tolist(), rate) == ([0, 0, 0], 16_000)  # what was read is what its digest is of
    waveform[:] = 2
    assert array.tolist() == [1, 1, 1]


def test_copies_are_of_the_same_kind():
    content = {"b": Point(1, [2, "c"]), "a": (np.float32(1), None)}
    (sample,) = Items({"a:b": content}, name="x")
    copy = sample.read().value
    assert copy == content
    assert (list(copy), type(copy["b"])) == (["b", "a"], Point)


def test_tensors():
    torch = pytest.importorskip("torch")
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = torch.from_numpy(array.copy())
    assert digest(tensor) == digest(tensor.clone().requires_grad_()) == digest(array)
    assert digest(tensor.bfloat16()) not in (digest(tensor), digest(tensor.bfloat16().view(torch.uint16)))
    (sample,) = Items({"a:b": tensor}, name="x")
    before = sample.read()
    tensor += 1
    assert torch.equal(before.value, torch.from_numpy(array))
    assert sample.current_digest() != before.digest


def test_images(tmp_path):
    image = pytest.importorskip("PIL.Image")
    plain = image.new("RGB", (2, 3), (1, 2, 3))
    turned, paletted, other, see_through = plain.copy(), plain.convert("P"), plain.convert("P"), plain.copy()
    turned.getexif()[0x0112] = 6
    other.putpalette([255 - value for value in paletted.getpalette()])
    see_through.info["transparency"] = (1, 2, 3)
    images = [plain, turned, paletted, other, see_through, plain.convert("RGBA"), image.new("RGB", (3, 2), (1, 2, 3))]
    assert len({digest(one) for one in images}) == len(images)
    assert digest(plain) == digest(plain.copy())
    (sample,) = Items({"a:b": turned}, name="x")
    before = sample.read()
    assert (before.value.getexif()[0x0112], before.value.tobytes()) == (6, plain.tobytes())
    turned.putpixel((0, 0), (9, 9, 9))
    assert sample.current_digest() != before.digest
    assert before.value.getpixel((0, 0)) == (1, 2, 3)
    plain.save(tmp_path / "a.png")
    image.effect_noise((64, 64), 50).save(tmp_path / "b.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:2000])
    with image.open(tmp_path / "a.png") as opened, image.open(tmp_path / "b.png") as cut:
        assert digest(opened) == digest(plain)
        with pytest.raises(errors.SampleError):
            digest(cut)


def test_content_without_a_digest_of_its_own():
    for content in (object(), {1, 2}, {1: 2}, Path("a.wav"), [object()], np.array([object()]), np.ma.masked_array([1])):
        (sample,) = Items({"a:b": content}, name="x")
        with pytest.raises(TypeError, match=r"a:b: there is no digest for .*: give \(key, content, digest\)"):
            sample.current_digest()
    thing = object()
    (sample,) = Items([("a:b", thing, "v1")], name="x")
    assert isinstance(sample, Sample)
    assert sample.read() == (thing, "v1", UNKNOWN)
    with pytest.raises(errors.SampleError, match="not valid Unicode"):
        digest(("\ud800",))


@pytest.mark.parametrize(
    ("items", "error", "message"),
    [
        ([], errors.EmptySourceError, "x has no items"),
        (["a:b"], TypeError, r"items\[0\]: expected \(key, content\)"),
        ([("a:b",)], TypeError, r"items\[0\]: expected \(key, content\)"),
        ([("a:b", 1, 2)], TypeError, r"items\[0\]: expected a digest"),
        ([("a:b", 1, "")], TypeError, r"items\[0\]: expected a digest"),
        ([("a:", 1)], errors.SourceError, "the class is empty"),
        ([("a", 1), ("a:_", 2)], errors.DuplicateKeysError, r"1 key\(s\) occur more than once: 'a'"),
        ([("a:b", 1), (Key("a", "b"), 2)], errors.DuplicateKeysError, r"items\[0\] and items\[1\]"),
    ],
)
def test_items_that_are_refused(items, error, message):
    with pytest.raises(error, match=message):
        list(Items(items, name="x"))


def listed_with_collections(threshold):
    """List samples that stay, with a threshold of the collector. Return its runs, and the threshold afterwards."""
    runs, before = [], gc.get_threshold()
    gc.callbacks.append(lambda phase, info: runs.append(phase))
    try:
        gc.set_threshold(threshold, *before[1:])
        samples_by_key(Table({"id": range(20_000), "says": ["a"] * 20_000}, name="x", file_id="id", text="says"))
        return len(runs), gc.get_threshold()[0]
    finally:
        gc.callbacks.pop()
        gc.set_threshold(*before)


@pytest.mark.parametrize("threshold", [0, 700, 10**6])
def test_a_long_list_of_samples_is_not_walked_over_again_and_again(threshold):
    runs, after = listed_with_collections(threshold)
    assert runs <= 10  # it was 336 with a threshold of 700
    assert after == threshold


def test_the_threshold_of_the_collector_is_back_after_an_error():
    before = gc.get_threshold()
    with pytest.raises(errors.DuplicateKeysError):
        samples_by_key(Items([("a", "x"), ("a", "y")], name="x"))
    assert gc.get_threshold() == before

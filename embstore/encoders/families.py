"""The table of model types that `from_pretrained` knows: the parts, outputs and defaults of each. Pure data.

`model_shapes` applies a row of this table to a ``config.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

from embstore.errors import UnknownModelError

Modality = Literal["audio", "image", "text"]
Layout = Literal["ast", "conv", "fixed", "patches", "pooled", "text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One way from samples to outputs. A model type with two towers has one family for each tower.

    Attributes
    ----------
    modality : {"audio", "image", "text"}
    layout : str
        The formula for the number of tokens. "pooled" if the model returns no tokens in order.
    default : tuple of str
        Names of the fields, if the caller names no fields.
    model : str
        The class of transformers to load.
    section : str or None
        The section of config.json for this tower.
    body, head : str or None
        The submodule that returns hidden states. The submodule that projects the pooler's output to `embeds`.
    normalized : bool
        Whether `embeds` have length one, as ``get_audio_features`` and ``get_text_features`` of CLAP return them.
    pooler : tuple of str
        Prefixes of the names of weights that only the pooler's output needs.
    has_pooler, class_token : bool
        Whether the model pools an output itself. Whether the first token represents the whole sample.
    ignored : tuple of str
        Prefixes of the names of weights that no output needs in evaluation.
    interpolates : bool
        Whether the model takes images of another size than in training.
    after_padding, padded : bool
        Whether position numbers begin after the padding token's number. Whether texts are padded, as in training.
    processor : str
        The type of image processor, if its JSON names no type.
    sizes : tuple of str
        The names in config.json of the size of a token and of the number of layers.
    settings : mapping
        Defaults of transformers for names that config.json leaves out.
    """

    modality: Modality
    layout: Layout
    default: tuple[str, ...]
    model: str = "AutoModel"
    section: str | None = None
    body: str | None = None
    head: str | None = None
    normalized: bool = False
    pooler: tuple[str, ...] = ("pooler.",)
    has_pooler: bool = True
    class_token: bool = True
    ignored: tuple[str, ...] = ()
    interpolates: bool = False
    after_padding: bool = False
    padded: bool = False
    processor: str = ""
    sizes: tuple[str, str] = ("hidden_size", "num_hidden_layers")
    settings: Mapping[str, Any] = field(default_factory=dict)


_BASE: Final[Mapping[str, Any]] = {"hidden_size": 768, "num_hidden_layers": 12}
_SPECTROGRAM: Final[Mapping[str, Any]] = {
    **_BASE,
    **{"patch_size": 16, "num_mel_bins": 128, "max_length": 1024, "frequency_stride": 10, "time_stride": 10},
}
_WAVES: Final[Mapping[str, Any]] = {
    **_BASE,
    **{"conv_kernel": (10, 3, 3, 3, 3, 2, 2), "conv_stride": (5, 2, 2, 2, 2, 2, 2), "feat_extract_norm": "group"},
}
_WHISPER: Final = {"d_model": 384, "encoder_layers": 4, "max_source_positions": 1500, "num_mel_bins": 80}
_CLAP: Final[Mapping[str, Any]] = {"patch_embeds_hidden_size": 96, "depths": (2, 2, 6, 2), "projection_dim": 512}


def _audio(layout: Layout, settings: Mapping[str, Any], **more: Any) -> Family:
    more = {"default": ("last_hidden_state",), "has_pooler": False, "class_token": False, **more}
    return Family(modality="audio", layout=layout, settings=settings, **more)


def _image(processor: str, *, patch_size: int, settings: Mapping[str, Any] | None = None, **more: Any) -> Family:
    said = {**_BASE, "image_size": 224, "patch_size": patch_size, **(settings or {})}
    more = {"default": ("cls",), "pooler": (), **more}
    return Family(modality="image", layout="patches", processor=processor, settings=said, **more)


def _text(*, positions: int = 512, pad: int = 0, settings: Mapping[str, Any] | None = None, **more: Any) -> Family:
    base = {} if "sizes" in more else _BASE
    said = {**base, "max_position_embeddings": positions, "pad_token_id": pad, **(settings or {})}
    more = {"default": ("mean",), **more}
    return Family(modality="text", layout="text", settings=said, **more)


def _tower(of: str, part: str) -> dict[str, Any]:
    """Return the names of the parts of a tower, in config.json and in the model."""
    names = {"default": ("embeds",), "section": f"{part}_config", "model": f"{of}{part.capitalize()}Model"}
    if of == "Siglip":
        return {**names, "pooler": ("head.", f"{part}_model.head."), "class_token": False}
    head = "visual_projection" if part == "vision" else f"{part}_projection"
    names |= {"model": f"{names['model']}WithProjection", "body": f"{part}_model", "head": head}
    return {**names, "normalized": of == "Clap"}


_ROBERTA: Final = _text(pad=1, after_padding=True)
# The mask token is used only in training, like the embedding of masked frames.
_DINOV2: Final[Mapping[str, Any]] = {"ignored": ("embeddings.mask_token",), "interpolates": True}
_SPEECH: Final = _audio("conv", _WAVES, ignored=("masked_spec_embed",))

FAMILIES: Final[Mapping[str, tuple[Family, ...]]] = MappingProxyType(
    {
        "audio-spectrogram-transformer": (_audio("ast", _SPECTROGRAM, pooler=(), has_pooler=True, class_token=True),),
        "wav2vec2": (_SPEECH,),
        "hubert": (_SPEECH,),
        "wavlm": (_SPEECH,),
        "whisper": (
            _audio("fixed", _WHISPER, body="encoder", ignored=("decoder.",), sizes=("d_model", "encoder_layers")),
        ),
        "clap": (
            _audio("pooled", _CLAP, pooler=(), has_pooler=True, **_tower("Clap", "audio")),
            _text(
                positions=514,
                pad=1,
                after_padding=True,
                pooler=("text_model.pooler.",),
                settings={"projection_dim": 512},
                **_tower("Clap", "text"),
            ),
        ),
        "vit": (_image("ViTImageProcessor", patch_size=16, pooler=("pooler.",), ignored=("embeddings.mask_token",)),),
        "dinov2": (_image("BitImageProcessor", patch_size=14, **_DINOV2),),
        "dinov2_with_registers": (
            _image("BitImageProcessor", patch_size=16, settings={"num_register_tokens": 4}, **_DINOV2),
        ),
        "clip": (
            _image("CLIPImageProcessor", patch_size=32, settings={"projection_dim": 512}, **_tower("CLIP", "vision")),
            _text(
                positions=77,
                pad=1,
                pooler=(),
                class_token=False,
                settings={"hidden_size": 512, "projection_dim": 512},
                **_tower("CLIP", "text"),
            ),
        ),
        "siglip": (
            _image("SiglipImageProcessor", patch_size=16, **_tower("Siglip", "vision")),
            _text(positions=64, pad=1, padded=True, **_tower("Siglip", "text")),
        ),
        "bert": (_text(),),
        "roberta": (_ROBERTA,),
        "xlm-roberta": (_ROBERTA,),
        "camembert": (_ROBERTA,),
        "mpnet": (_ROBERTA,),
        "electra": (_text(has_pooler=False, settings={"hidden_size": 256}),),
        "albert": (_text(settings={"hidden_size": 4096}),),
        "deberta-v2": (_text(has_pooler=False, settings={"hidden_size": 1536, "num_hidden_layers": 24}),),
        "distilbert": (_text(has_pooler=False, sizes=("dim", "n_layers"), settings={"dim": 768, "n_layers": 6}),),
    }
)
"""Families by model type. Of two towers the first is the default, if no modality is named."""


def family_of(model: str, model_type: str, modality: Modality | None) -> Family:
    """Return the family of a model type: of two towers the first, unless a modality is given.

    Raises
    ------
    UnknownModelError
        The type is not known, or has no tower of this modality.
    """
    families = FAMILIES.get(model_type, ())
    for family in families:
        if modality is None or family.modality == modality:
            return family
    found = f"{model_type}, {modality}" if families else model_type
    raise UnknownModelError(model, found, FAMILIES)

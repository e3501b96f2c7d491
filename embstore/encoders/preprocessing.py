"""Describe how samples are prepared for a model, from its processor's or tokenizer's files and the caller's options.

The description serves the config and the run, and nothing is loaded for it. `audio`, `image`, `text` and `running`
prepare the samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from embstore.encoders import image, weights
from embstore.encoders.audio import AudioSettings
from embstore.encoders.ignored import check_settings
from embstore.encoders.model_files import PROCESSOR_FILES, TOKENIZER_FILES, VOCABULARIES, ModelFiles, plain, read_json
from embstore.encoders.model_shapes import TextLimits, check_processor, least_samples, processor_type, token_limit
from embstore.errors import ConfigError, ModelFilesError

_OPTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "audio": ("duration",),
    "image": (),
    "text": ("max_tokens", "padding"),
}


class Preprocessing(NamedTuple):
    """The preparation of samples: for the config, for `model_shapes`, and for the run.

    Attributes
    ----------
    described : dict
        The part of the config about preparation.
    files : tuple of str
        The files that were read, relative to the model's folder.
    processor : mapping or None
        The JSON of a feature extractor or image processor.
    audio, text : optional
        The form of decoded clips. The length of texts.
    cut : int or None
        Number of samples of a clip that are used. None for all samples.
    attention_mask : bool
        Whether the model receives a mask of the padding.
    """

    described: dict[str, Any]
    files: tuple[str, ...]
    processor: Mapping[str, Any] | None = None
    audio: AudioSettings | None = None
    text: TextLimits | None = None
    cut: int | None = None
    attention_mask: bool = True


def preprocessing_of(files: ModelFiles, given: Mapping[str, Any]) -> Preprocessing:
    """Return how samples are prepared for a model.

    Parameters
    ----------
    files : ModelFiles
    given : mapping
        The options ``duration`` (seconds), ``max_tokens`` and ``padding``. None for an option that was not given.

    Raises
    ------
    ModelFilesError
        The processor or the vocabulary is missing.
    ConfigError
        An option is out of range, or not an option of this modality. Or the model can't take the processor's output.
    """
    modality = files.family.modality
    found = {"audio": _audio, "image": _image, "text": _text}[modality](files, given)
    for name, value in given.items():
        if value is not None and name not in _OPTIONS[modality]:
            raise ConfigError(name, value, f"an encoder of {modality} has no such option")
    return found


def _processor(files: ModelFiles, *parts: str) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """Return a processor's JSON, and the files that may hold it. transformers 5 writes one file for several parts."""
    there = tuple(name for name in PROCESSOR_FILES if (files.transformer / name).exists())
    several = read_json(files.transformer / "processor_config.json") or {}
    found = next((several[part] for part in parts if part in several), None)
    found = read_json(files.transformer / "preprocessor_config.json") if found is None else found
    if found is None:
        raise ModelFilesError(files.transformer, "preprocessor_config.json or processor_config.json")
    for said in (several, found):
        check_settings(files.place.id, said)
    check_processor(files.family, files.tower, found)
    return found, there


def _described(processor: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": processor_type(processor), **plain(processor)}


def _audio(files: ModelFiles, given: Mapping[str, Any]) -> Preprocessing:
    processor, there = _processor(files, "feature_extractor", "audio_processor")
    duration, layout = given["duration"], files.family.layout
    rate = processor.get("sampling_rate", 48_000 if layout == "pooled" else 16_000)
    audio = AudioSettings(sample_rate=rate, duration=duration)
    limit = {"fixed": processor.get("chunk_length", 30), "pooled": processor.get("max_length_s", 10)}.get(layout)
    if duration is not None and limit is not None and duration > limit:
        raise ConfigError("duration", duration, f"the feature extractor takes at most {limit} seconds")
    if layout == "fixed" and duration is None:
        audio = AudioSettings(sample_rate=rate, duration=limit)
    least = least_samples(files.family, files.tower)
    if audio.samples is not None and audio.samples < least:
        raise ConfigError("duration", duration, f"one frame takes {least} samples")
    return Preprocessing(
        {"processor": _described(processor), **audio.describe()},
        there,
        processor=processor,
        audio=audio,
        # CLAP's extractor would cut longer clips at a random place, so they are cut before. It repeats shorter
        # clips, so they are not padded.
        cut=int(limit * rate) if layout == "pooled" and limit is not None else None,
        attention_mask=bool(processor.get("return_attention_mask", False)),
    )


def _image(files: ModelFiles, given: Mapping[str, Any]) -> Preprocessing:
    processor, there = _processor(files, "image_processor")
    return Preprocessing({"processor": _described(processor), **image.describe()}, there, processor=processor)


def _text(files: ModelFiles, given: Mapping[str, Any]) -> Preprocessing:
    base = files.transformer
    names = [name for name in TOKENIZER_FILES if (base / name).exists()]
    if not {*names} & {*VOCABULARIES}:
        raise ModelFilesError(base, "tokenizer.json, nor another vocabulary")
    said = read_json(base / "tokenizer_config.json") or {}
    check_settings(files.place.id, said)
    limit = token_limit(files.family, files.tower, said.get("model_max_length"))
    most = token_limit(files.family, files.tower, None)
    chosen = given["max_tokens"] or min(most, files.sentence.get("max_seq_length") or limit)
    if given["max_tokens"] is not None and not (isinstance(chosen, int) and 1 <= given["max_tokens"] <= most):
        raise ConfigError("max_tokens", given["max_tokens"], f"expected 1 to {most} tokens")
    text = TextLimits(max_tokens=int(chosen), padded=files.family.padded or given["padding"] == "max_length")
    described = {
        "tokenizer": {name: weights.digest_file(base / name) for name in names},
        "max_tokens": text.max_tokens,
        "truncation": "end",
        "padding": "max_length" if text.padded else "longest",
        **({} if files.head is None else {"lower_case": files.lower_case, "prompt": files.head.prompt}),
    }
    there = tuple(str((base / name).relative_to(files.place.folder)) for name in names)
    return Preprocessing(described, there, text=text, attention_mask=not files.family.padded)

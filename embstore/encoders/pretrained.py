"""Pretrained models of Hugging Face's as encoders: their files become a config, and nothing is loaded until it is used.

What a model type's outputs are is `families`', how they are named `outputs`', and running them `running`'s.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from copy import copy
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self

from embstore.config import Config
from embstore.encoders import families, image, weights
from embstore.encoders.audio import AudioSettings
from embstore.encoders.base import BaseEncoder
from embstore.encoders.families import FAMILIES, Anatomy, Family, Modality, TextLimits
from embstore.encoders.outputs import SENTENCE, Output, SentenceHead, declare, sentence_head
from embstore.encoders.running import Plan, Runner, imported
from embstore.errors import ConfigError, ModelFilesError, UnknownModelError, WeightsChangedError
from embstore.schema import FieldSpec

__all__ = ["PretrainedEncoder", "from_pretrained"]

Padding = Literal["longest", "max_length"]

_VOCABULARIES: Final = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "sentencepiece.bpe.model"),
    *("spiece.model", "spm.model"),
)
_TOKENIZER_FILES: Final = (
    *_VOCABULARIES,
    *("merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
_PROCESSOR_FILES: Final = ("preprocessor_config.json", "processor_config.json")
_SENTENCE_FILES: Final = tuple(
    f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta")
)
_OTHER_FILES: Final = ("config.json", "modules.json", "config_sentence_transformers.json", "adapter_config.json")
_SAFETENSORS: Final = ("model.safetensors", "model.safetensors.index.json")
_BIN: Final = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_FROM_HUB: Final = (
    *(*_TOKENIZER_FILES, *_PROCESSOR_FILES, *_SENTENCE_FILES, *_OTHER_FILES, "[0-9]*_*/*"),
    *(*_SAFETENSORS, "model-*-of-*.safetensors"),
)

_NOISE: Final = frozenset(
    (
        *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "architectures", "auto_map"),
        *("transformers_version", "_name_or_path", "torch_dtype", "dtype", "use_cache", "_commit_hash"),
        *("processor_class", "_processor_class", "_valid_processor_keys", "use_fast", "device", "return_tensors"),
        *("image_processor_type", "feature_extractor_type", "backend", "disable_grouping"),
        "sampling_rate",  # stands beside it, as the rate that clips are brought to
    )
)
"""What in config.json and in a processor's JSON no value depends on, or stands in the config under another name."""

_LIBRARIES: Final = {
    "audio": ("soundfile", "soxr", "torchaudio"),
    "image": ("pillow",),
    "text": ("tokenizers",),
}
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class PretrainedEncoder(BaseEncoder):
    """A pretrained model that encodes clips, images or texts; made by `from_pretrained`."""

    def __init__(
        self, config: Config, outputs: Mapping[str, Output], anatomy: Anatomy, runner: Runner, dtype: str
    ) -> None:
        self._config = config
        self._declared = dict(outputs)
        self._outputs = dict(outputs)
        self._anatomy = anatomy
        self._runner = runner
        self._dtype = dtype

    @property
    def config(self) -> Config:
        """All that the values depend on but the choice of fields."""
        return self._config

    @property
    def fields(self) -> dict[str, FieldSpec]:
        """What `encode` returns, by name."""
        return {name: output.spec for name, output in self._outputs.items()}

    @property
    def device(self) -> str:
        """Where the model runs: "cuda", if there is one, else "mps", else "cpu"."""
        return self._runner.device

    @property
    def provenance(self) -> dict[str, str]:
        """Versions of the libraries, and the device. They change the last bits; torchaudio changes AST's more."""
        libraries = ("transformers", "torch", *_LIBRARIES[self._runner.plan.family.modality])
        return {"device": self.device, **{name: _version(name) for name in libraries}}

    def with_fields(self, names: Sequence[str]) -> Self:
        """Return an encoder of the same loaded model with other fields.

        Parameters
        ----------
        names : sequence of str
            Fields that were declared keep what they hold; others are outputs of the model.

        Raises
        ------
        UnknownFieldError
            The model has no such output.
        MissingWeightsError
            The model is loaded, and lacks weights for one of them.
        """
        more = [name for name in names if name not in self._declared]
        found = declare(more, self._dtype, self._anatomy) if more or not names else {}
        other = copy(self)
        other._outputs = {name: self._declared.get(name) or found[name] for name in names}
        self._runner.check(other._outputs)
        return other

    def decode(self, content: Any) -> Any:
        """Turn a sample's content into what the model takes of it. Several threads may do so at once.

        Parameters
        ----------
        content : bytes, str, or what `decode_audio` and `decode_image` take

        Raises
        ------
        DecodeError
        """
        return self._runner.prepare(content)

    def length(self, item: Any) -> int:
        """Return how long a decoded item is, in tokens or samples, if it is padded to its batch's longest; else 0."""
        return self._runner.length(item)

    def encode(self, items: Sequence[Any]) -> dict[str, Any]:
        """Return rows for decoded items, as tensors on the CPU.

        Returns
        -------
        dict of str to tensor or list of tensor
            ``(len(items), *shape)`` in the field's dtype; of a ragged field a list of ``(length, dim)``.

        Raises
        ------
        MissingWeightsError
            The checkpoint lacks weights that a field needs.
        WeightsChangedError
            The model's files changed since `from_pretrained`.
        """
        return self._runner.encode(items, self._outputs)

    def __repr__(self) -> str:
        return f"<PretrainedEncoder {self._runner.plan.name}: {', '.join(self._outputs)}>"


def from_pretrained(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    fields: Sequence[str] | Mapping[str, str] | None = None,
    dtype: str | Mapping[str, str] = "float32",
    duration: float | None = None,
    max_tokens: int | None = None,
    padding: Padding = "longest",
    modality: Modality | None = None,
    device: str | None = None,
    compute_dtype: str = "float32",
    preprocess_version: int = 1,
    id: str | None = None,
) -> PretrainedEncoder:
    """Make an encoder of a pretrained model: AST, Whisper, CLAP, wav2vec 2.0, ViT, DINOv2, CLIP, SigLIP, BERT, others.

    Its config is known from the model's files, without torch or transformers; the first `encode` loads the model.

    Parameters
    ----------
    model : str or path
        A folder, or a model of the Hugging Face Hub, which is downloaded unless it is in its cache.
    revision : str, optional
        Branch, tag or commit; of a folder whatever is worth telling apart.
    fields : sequence or mapping, optional
        Outputs, ``layer[.pooling]``: ``"last_hidden_state"``, ``"layer_6.mean"``, ``"pooler_output"``, ``"embeds"``,
        ``"sentence_embedding"``, and for short ``"mean"``, ``"max"``, ``"cls"``. A mapping gives them other names:
        ``{"emb": "layer_6.mean"}``. All come from one pass.
    dtype : str or mapping
        What each is stored in: "float32", "float16" or "bfloat16".
    duration : float, optional
        Seconds to which clips are cut or padded.
    max_tokens : int, optional
        Tokens after which texts are cut; as many as the model takes, if not given.
    padding : {"longest", "max_length"}
        Whether texts are padded to the longest of a batch, or to `max_tokens`, as SigLIP's always are.
    modality : {"audio", "image", "text"}, optional
        Which of the two parts of CLIP, SigLIP or CLAP; what they are named for, if not given.
    device : str, optional
    compute_dtype : {"float32", "bfloat16", "float16"}
        What the model computes in: mixed precision, unless it is float32.
    preprocess_version : int
        To be raised when anything about the preprocessing changes that the config does not show.
    id : str, optional
        Name of the model in the config; its id or its folder's name, if not given.

    Raises
    ------
    UnknownModelError
        A type of model that is not known; see `FunctionEncoder` and `ModuleEncoder`.
    ModelFilesError
        Weights, config.json, processor or tokenizer are not there.
    UnknownFieldError, DtypeError, NameRefusedError
        A field that the model does not have, can't be stored so, or can't be named so.
    ConfigError
        An option out of range, or one that this model does not have.
    """
    if compute_dtype not in ("float32", "bfloat16", "float16"):
        raise ConfigError("compute_dtype", compute_dtype, "expected 'float32', 'bfloat16' or 'float16'")
    if padding not in ("longest", "max_length"):
        raise ConfigError("padding", padding, "expected 'longest' or 'max_length'")
    place = _locate(model, revision, id, modality or "text")
    files = _read(place, modality)
    settings = families.tower_settings(files.family, files.settings)
    described = {"audio": _audio, "image": _image, "text": _text}[files.family.modality]
    given = {"duration": duration, "max_tokens": max_tokens, "padding": None if padding == "longest" else padding}
    ready = described(place, files, given)
    for name, value in given.items():
        if value is not None and name not in _OPTIONS[files.family.modality]:
            raise ConfigError(name, value, f"an encoder of {files.family.modality} has no such option")
    anatomy = families.describe(
        files.family,
        files.settings,
        model=place.id,
        processor=ready.processor,
        text=ready.text,
        samples=None if ready.audio is None else ready.audio.samples,
    )
    default = files.family.default
    if files.head is not None:
        anatomy = anatomy.with_vector(SENTENCE, files.head.size(anatomy.dim))
        default = (SENTENCE,)
    outputs = declare(default if fields is None else fields, dtype, anatomy)
    names = (*files.weights, *files.others, *ready.files)
    stamps = weights.stamps(place.folder, names)  # before the weights are read: what changes meanwhile shows at loading
    if _read(place, modality) != files or described(place, files, given) != ready:
        raise WeightsChangedError(place.folder)
    config = Config(
        encoder={
            "id": place.id,
            "revision": place.revision,
            "type": files.settings["model_type"],
            "modality": files.family.modality,
            "weights": weights.digest_files(place.folder, files.weights),
            "settings": _plain(files.settings),
            **({} if files.head is None else {"modules": files.head.describe()}),
        },
        preprocessing={"version": preprocess_version, **ready.described},
        compute_dtype=compute_dtype,
    )
    plan = Plan(
        name=place.id,
        folder=place.folder,
        transformer=files.transformer,
        files=names,
        stamps=stamps,
        safetensors=files.weights[0].endswith((".safetensors", ".safetensors.index.json")),
        family=files.family,
        settings=settings,
        audio=ready.audio,
        text=ready.text,
        head=files.head,
        cut=ready.cut,
        lower_case=files.lower_case,
        attention_mask=ready.attention_mask,
        device=device,
        compute_dtype=compute_dtype,
    )
    return PretrainedEncoder(config, outputs, anatomy, Runner(plan), "float32" if isinstance(dtype, Mapping) else dtype)


# -- files ------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """Where a model's files are, and what its config calls it."""

    folder: Path
    id: str
    revision: str | None


class _Files(NamedTuple):
    """What a model's files say, its processor's apart; names are relative to the folder."""

    transformer: Path
    settings: Mapping[str, Any]
    family: Family
    weights: tuple[str, ...]
    others: tuple[str, ...]
    head: SentenceHead | None
    sentence: Mapping[str, Any]

    @property
    def lower_case(self) -> bool:
        return bool(self.sentence.get("do_lower_case"))


def _locate(model: str | os.PathLike[str], revision: str | None, id: str | None, extra: str) -> _Place:
    path = Path(model)
    if path.is_dir():
        folder = Path(os.path.abspath(path))  # not resolved: a link's name is the one that was chosen
        return _Place(folder, id or folder.name, revision)
    if not isinstance(model, str) or not _HUB_ID.fullmatch(model):
        raise ModelFilesError(path, "config.json")
    hub = imported("huggingface_hub", extra)
    folder = Path(hub.snapshot_download(model, revision=revision, allow_patterns=[*_FROM_HUB]))
    if not any((folder / name).exists() for name in _SAFETENSORS):
        patterns = [*_BIN, "pytorch_model-*-of-*.bin"]
        folder = Path(hub.snapshot_download(model, revision=folder.name, allow_patterns=patterns))
    return _Place(folder, id or model, folder.name)  # a snapshot's folder is named by its commit


def _read(place: _Place, modality: Modality | None) -> _Files:
    folder = place.folder
    others = ["config_sentence_transformers.json", "modules.json"]
    modules, head = _json(folder / "modules.json", list), None
    sentence: Mapping[str, Any] = {}
    transformer = ""
    if modules:
        transformer = str(modules[0].get("path", ""))
        name = next((n for n in _SENTENCE_FILES if (folder / transformer / n).exists()), _SENTENCE_FILES[0])
        sentence = _json(folder / transformer / name) or {}
        head = sentence_head(place.id, modules, sentence, lambda name: _json(folder / name) or {})
        others += [f"{module['path']}/config.json" for module in modules[1:] if module.get("path")]
        others.append(f"{transformer}/{name}".lstrip("/"))
    base = folder / transformer
    settings = _json(base / "config.json")
    if settings is None:
        raise ModelFilesError(base, "config.json")
    family = families.family_of(place.id, str(settings.get("model_type")), modality)
    if head is not None and family.modality != "text":
        raise UnknownModelError(place.id, f"sentence-transformers of {settings['model_type']}", FAMILIES)
    for name, what in (("quantization_config", "quantised weights"), ("transformers_weights", "weights by name")):
        if settings.get(name):
            raise UnknownModelError(place.id, what, FAMILIES)
    if (base / "adapter_config.json").exists():  # which transformers would put on, if PEFT is installed
        raise UnknownModelError(place.id, "an adapter", FAMILIES)
    names = [f"{transformer}/{name}".lstrip("/") for name in _weight_files(base)]
    for step in head.steps if head is not None else ():
        if step is not None:
            names += [f"{step.folder}/{name}" for name in _weight_files(folder / step.folder)]
    others.append(f"{transformer}/config.json".lstrip("/"))
    there = tuple(name for name in others if (folder / name).exists())
    return _Files(base, settings, family, tuple(names), there, head, sentence)


def _weight_files(folder: Path) -> list[str]:
    """List the files of weights that transformers loads, of all that there are."""
    name = next((name for name in (*_SAFETENSORS, *_BIN) if (folder / name).exists()), None)
    if name is None:
        raise ModelFilesError(folder, "model.safetensors or pytorch_model.bin")
    if not name.endswith(".index.json"):
        return [name]
    shards = sorted({str(shard) for shard in (_json(folder / name) or {}).get("weight_map", {}).values()})
    for shard in shards:
        if Path(shard).name != shard or not (folder / shard).exists():
            raise ModelFilesError(folder, shard)
    return [name, *shards]


def _json(path: Path, kind: type = dict) -> Any:
    """Return what a JSON file holds; None, if there is none."""
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelFilesError(path.parent, f"{path.name} that is JSON: {error}") from error
    if not isinstance(found, kind):
        raise ModelFilesError(path.parent, f"{path.name} that holds a {kind.__name__}, but a {type(found).__name__}")
    return found


def _plain(value: Any) -> Any:
    """Return JSON of a model's without noise, and with numbers that a config refuses as text."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items() if k not in _NOISE and not k.startswith("_attn_implementation")}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    odd = isinstance(value, int | float) and (
        abs(value) > 2**53 if isinstance(value, int) else not math.isfinite(value)
    )
    return str(value) if odd else value


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


# -- preprocessing ----------------------------------------------------------------------------


class _Ready(NamedTuple):
    """How samples are prepared: for the config, for the formulas, and for the run."""

    described: dict[str, Any]
    files: tuple[str, ...]
    processor: Mapping[str, Any] | None = None
    audio: AudioSettings | None = None
    text: TextLimits | None = None
    cut: int | None = None
    attention_mask: bool = True


_OPTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "audio": ("duration",),
    "image": (),
    "text": ("max_tokens", "padding"),
}


def _processor(files: _Files, *parts: str) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """Return a processor's JSON, and the files that it may stand in; transformers 5 writes one for several parts."""
    there = tuple(name for name in _PROCESSOR_FILES if (files.transformer / name).exists())
    several = _json(files.transformer / "processor_config.json") or {}
    found = next((several[part] for part in parts if part in several), None)
    found = _json(files.transformer / "preprocessor_config.json") if found is None else found
    if found is None:
        raise ModelFilesError(files.transformer, "preprocessor_config.json or processor_config.json")
    families.check_processor(files.family, files.settings, found)
    return found, there


def _described(processor: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": families.processor_type(processor), **_plain(processor)}


def _audio(place: _Place, files: _Files, given: Mapping[str, Any]) -> _Ready:
    processor, there = _processor(files, "feature_extractor", "audio_processor")
    duration, layout = given["duration"], files.family.layout
    rate = processor.get("sampling_rate", 48_000 if layout == "pooled" else 16_000)
    audio = AudioSettings(sample_rate=rate, duration=duration)
    limit = {"fixed": processor.get("chunk_length", 30), "pooled": processor.get("max_length_s", 10)}.get(layout)
    if duration is not None and limit is not None and duration > limit:
        raise ConfigError("duration", duration, f"the feature extractor takes at most {limit} seconds")
    if layout == "fixed" and duration is None:
        audio = AudioSettings(sample_rate=rate, duration=limit)
    least = families.least_samples(files.family, files.settings)
    if audio.samples is not None and audio.samples < least:
        raise ConfigError("duration", duration, f"one frame takes {least} samples")
    return _Ready(
        {"processor": _described(processor), **audio.describe()},
        there,
        processor=processor,
        audio=audio,
        # CLAP's extractor would cut longer clips at random, and repeats shorter ones: they are cut, and not padded.
        cut=int(limit * rate) if layout == "pooled" and limit is not None else None,
        attention_mask=bool(processor.get("return_attention_mask", False)),
    )


def _image(place: _Place, files: _Files, given: Mapping[str, Any]) -> _Ready:
    processor, there = _processor(files, "image_processor")
    return _Ready({"processor": _described(processor), **image.describe()}, there, processor=processor)


def _text(place: _Place, files: _Files, given: Mapping[str, Any]) -> _Ready:
    base = files.transformer
    names = [name for name in _TOKENIZER_FILES if (base / name).exists()]
    if not {*names} & {*_VOCABULARIES}:
        raise ModelFilesError(base, "tokenizer.json, nor another vocabulary")
    said = _json(base / "tokenizer_config.json") or {}
    limit = families.token_limit(files.family, files.settings, said.get("model_max_length"))
    most = families.token_limit(files.family, files.settings, None)
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
    prefix = "" if base == place.folder else f"{base.relative_to(place.folder)}/"
    there = tuple(f"{prefix}{name}" for name in names)
    return _Ready(described, there, text=text, attention_mask=not files.family.padded)

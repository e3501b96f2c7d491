"""The files of a pretrained model: where they are, which of them count, and what their JSON says.

What a processor's or a tokenizer's files come to is `preprocessing`'s, what modules.json means `sentence`'s, and
digests of the files `weights`'.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from embstore._engine.lazy import imported
from embstore.encoders.families import FAMILIES, Family, Modality, family_of
from embstore.encoders.model_shapes import tower_settings
from embstore.encoders.sentence import SentenceHead, sentence_head
from embstore.errors import ModelFilesError, UnknownModelError

VOCABULARIES: Final = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "sentencepiece.bpe.model"),
    *("spiece.model", "spm.model"),
)
"""What a tokenizer can't do without: one of these."""

TOKENIZER_FILES: Final = (
    *VOCABULARIES,
    *("merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
"""All that a tokenizer may be made of."""

PROCESSOR_FILES: Final = ("preprocessor_config.json", "processor_config.json")
"""What a feature extractor's or image processor's settings may stand in."""

_SENTENCE_FILES: Final = tuple(
    f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta")
)
_OTHER_FILES: Final = ("config.json", "modules.json", "config_sentence_transformers.json", "adapter_config.json")
_SAFETENSORS: Final = ("model.safetensors", "model.safetensors.index.json")
_BIN: Final = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_FROM_HUB: Final = (
    *(*TOKENIZER_FILES, *PROCESSOR_FILES, *_SENTENCE_FILES, *_OTHER_FILES, "[0-9]*_*/*"),
    *(*_SAFETENSORS, "model-*-of-*.safetensors"),
)
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

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


class Place(NamedTuple):
    """Where a model's files are, and what its config calls it.

    Attributes
    ----------
    folder : Path
    id : str
    revision : str or None
        The commit of a model of the Hub; of a folder what was given.
    """

    folder: Path
    id: str
    revision: str | None


class ModelFiles(NamedTuple):
    """What a model's files say, its processor's apart; names are relative to the folder.

    Attributes
    ----------
    place : Place
    transformer : Path
        Where transformers finds its part of them.
    settings : mapping
        config.json.
    family : Family
    tower : mapping
        config.json, or its part about the tower, over the defaults of transformers.
    weights : tuple of str
        Files of weights, the linear layers' of sentence-transformers among them.
    others : tuple of str
        The other files that were read.
    head : SentenceHead or None
        What modules.json makes of the tokens, if there is one.
    sentence : mapping
        sentence_bert_config.json, or what it is called of this model; empty, if there is none.
    """

    place: Place
    transformer: Path
    settings: Mapping[str, Any]
    family: Family
    tower: Mapping[str, Any]
    weights: tuple[str, ...]
    others: tuple[str, ...]
    head: SentenceHead | None
    sentence: Mapping[str, Any]

    @property
    def lower_case(self) -> bool:
        """Whether texts are lowercased first."""
        return bool(self.sentence.get("do_lower_case"))

    @property
    def safetensors(self) -> bool:
        """Whether the model's weights are of this kind."""
        return self.weights[0].endswith(_SAFETENSORS)


def locate(model: str | os.PathLike[str], revision: str | None, id: str | None, extra: str) -> Place:
    """Find a model's folder: as given, or the snapshot of a model of the Hub, downloaded unless it is in the cache.

    Parameters
    ----------
    model : str or path
        A folder, or a model's id on the Hub.
    revision : str, optional
        Branch, tag or commit.
    id : str, optional
        What the config calls the model; its id or its folder's name, if not given.
    extra : str
        The extra of embstore's to ask for, where downloading needs huggingface_hub.

    Raises
    ------
    ModelFilesError
        No folder, and nothing that could be an id.
    ImportError
        huggingface_hub is not installed.
    """
    path = Path(model)
    if path.is_dir():
        folder = Path(os.path.abspath(path))  # not resolved: a link's name is the one that was chosen
        return Place(folder, id or folder.name, revision)
    if not isinstance(model, str) or not _HUB_ID.fullmatch(model):
        raise ModelFilesError(path, "config.json")
    hub = imported("huggingface_hub", extra, "for this model")
    folder = Path(hub.snapshot_download(model, revision=revision, allow_patterns=[*_FROM_HUB]))
    if not any((folder / name).exists() for name in _SAFETENSORS):
        patterns = [*_BIN, "pytorch_model-*-of-*.bin"]
        folder = Path(hub.snapshot_download(model, revision=folder.name, allow_patterns=patterns))
    return Place(folder, id or model, folder.name)  # a snapshot's folder is named by its commit


def read_files(place: Place, modality: Modality | None) -> ModelFiles:
    """Read what a model's files say, but for its processor's and tokenizer's.

    Parameters
    ----------
    place : Place
    modality : {"audio", "image", "text"} or None
        Which of two towers.

    Raises
    ------
    ModelFilesError
        config.json or weights are not there, or a JSON file does not hold what it should.
    UnknownModelError
        A type of model, a module of sentence-transformers or a kind of weights that is not known.
    """
    folder = place.folder
    others = ["config_sentence_transformers.json", "modules.json"]
    modules, head = _modules(folder), None
    sentence: Mapping[str, Any] = {}
    transformer = ""
    if modules:
        transformer = str(modules[0].get("path", ""))
        name = next((n for n in _SENTENCE_FILES if (folder / transformer / n).exists()), _SENTENCE_FILES[0])
        sentence = read_json(folder / transformer / name) or {}
        head = sentence_head(place.id, modules, sentence, lambda name: read_json(folder / name) or {})
        others += [f"{module['path']}/config.json" for module in modules[1:] if module.get("path")]
        others.append(f"{transformer}/{name}".lstrip("/"))
    base = folder / transformer
    settings = read_json(base / "config.json")
    if settings is None:
        raise ModelFilesError(base, "config.json")
    family = family_of(place.id, str(settings.get("model_type")), modality)
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
    tower = tower_settings(family, settings)
    return ModelFiles(place, base, settings, family, tower, tuple(names), there, head, sentence)


def _modules(folder: Path) -> list[dict[str, Any]]:
    """Return the modules of sentence-transformers; their paths stay below the model's folder."""
    modules: list[dict[str, Any]] = read_json(folder / "modules.json", list) or []
    for module in modules:
        path = module.get("path", "") if isinstance(module, dict) else None
        if not isinstance(path, str) or Path(path).is_absolute() or ".." in Path(path).parts:
            raise ModelFilesError(folder, f"modules.json whose paths are below it, but {module!r}")
    return modules


def _weight_files(folder: Path) -> list[str]:
    """List the files of weights that transformers loads, of all that there are."""
    name = next((name for name in (*_SAFETENSORS, *_BIN) if (folder / name).exists()), None)
    if name is None:
        raise ModelFilesError(folder, "model.safetensors or pytorch_model.bin")
    if not name.endswith(".index.json"):
        return [name]
    listed = (read_json(folder / name) or {}).get("weight_map")
    if not isinstance(listed, dict):
        raise ModelFilesError(folder, f"{name} with a weight_map")
    shards = sorted({str(shard) for shard in listed.values()})
    for shard in shards:
        if Path(shard).name != shard or not (folder / shard).exists():
            raise ModelFilesError(folder, shard)
    return [name, *shards]


def read_json(path: Path, kind: type = dict) -> Any:
    """Return what a JSON file holds; None, if there is none.

    Parameters
    ----------
    path : Path
    kind : type
        What it has to hold.

    Raises
    ------
    ModelFilesError
        It is not JSON, or holds something else.
    """
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelFilesError(path.parent, f"{path.name} that is JSON: {error}") from error
    if not isinstance(found, kind):
        raise ModelFilesError(path.parent, f"{path.name} that holds a {kind.__name__}, but a {type(found).__name__}")
    return found


def plain(value: Any) -> Any:
    """Return JSON of a model's without noise, and with numbers that a config refuses as text.

    Parameters
    ----------
    value : mapping, list, str, number, bool or None
    """
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items() if k not in _NOISE and not k.startswith("_attn_implementation")}
    if isinstance(value, list):
        return [plain(v) for v in value]
    odd = isinstance(value, int | float) and (
        abs(value) > 2**53 if isinstance(value, int) else not math.isfinite(value)
    )
    return str(value) if odd else value

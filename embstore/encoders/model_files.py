"""Find the files of a pretrained model, choose those that values depend on, and read their JSON.

`preprocessing` reads a processor's or a tokenizer's files, `sentence` interprets modules.json, `weights` makes digests.
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
from embstore.encoders.ignored import NOISE, check_settings
from embstore.encoders.model_shapes import tower_settings
from embstore.encoders.sentence import SentenceHead, sentence_head
from embstore.errors import ModelFilesError, ModelNotFoundError, UnknownModelError

VOCABULARIES: Final = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "sentencepiece.bpe.model"),
    *("spiece.model", "spm.model"),
)
"""Vocabularies. A tokenizer needs one of these files."""

TOKENIZER_FILES: Final = (
    *VOCABULARIES,
    *("merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
"""All files that a tokenizer may consist of."""

PROCESSOR_FILES: Final = ("preprocessor_config.json", "processor_config.json")
"""Files that may hold the settings of a feature extractor or image processor."""

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
_HUB_FOLDER: Final = re.compile(r"models--(.+)")
_TITLE: Final = re.compile(r"^# +(\S*[-_/\d]\S*) *$", re.MULTILINE)
"""The title of a model card, if it is an id: one word, and not a word of the language, such as "Introduction"."""
_NAMELESS: Final = re.compile(r"(?i)(models?|encoder|transformer|weights|snapshot|pytorch|[0-9a-f]{7,40})")
"""Names of folders that do not name their model."""


class Place(NamedTuple):
    """The folder of a model's files, and the model's name in the config.

    Attributes
    ----------
    folder : Path
    id : str
    revision : str or None
        The commit of a model of the Hub. For a folder, the text that the caller gave.
    """

    folder: Path
    id: str
    revision: str | None


class ModelFiles(NamedTuple):
    """The content of a model's files, except its processor's. File names are relative to the model's folder.

    Attributes
    ----------
    place : Place
    transformer : Path
        The folder of the files for transformers.
    settings : mapping
        config.json.
    family : Family
    tower : mapping
        config.json, or its section for the tower, merged over the defaults of transformers.
    weights : tuple of str
        Files of weights, with those of the linear layers of sentence-transformers.
    others : tuple of str
        The other files that were read.
    head : SentenceHead or None
        The modules of modules.json after the transformer, if that file exists.
    sentence : mapping
        sentence_bert_config.json, or the file of another name for this model. Empty without such a file.
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
        """Whether texts are lowercased before tokenizing."""
        return bool(self.sentence.get("do_lower_case"))

    @property
    def safetensors(self) -> bool:
        """Whether the model's weights are in safetensors files."""
        return self.weights[0].endswith(_SAFETENSORS)


def locate(model: str | os.PathLike[str], revision: str | None, id: str | None, extra: str) -> Place:
    """Find a model's folder: the given folder, or a snapshot of the Hub, downloaded unless it is in the Hub's cache.

    Parameters
    ----------
    model : str or path
        A folder, or a model's id on the Hub.
    revision : str, optional
        Branch, tag or commit.
    id : str, optional
        The model's name in the config. Default: its id, see `from_pretrained`.
    extra : str
        The extra of embstore that the error names if huggingface_hub is not installed.

    Raises
    ------
    ModelNotFoundError
        `model` is neither a folder nor a model of the Hub. Or the Hub can't be reached, and its cache lacks the model.
    ImportError
        huggingface_hub is not installed.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        folder = Path(os.path.abspath(path))  # links are not resolved: the user chose the link's name
        own, commit = _own_id(folder)
        return Place(folder, id or own, revision or commit)
    absent = Path(os.path.abspath(path)), "config.json"
    if not isinstance(model, str) or not _HUB_ID.fullmatch(model):
        raise ModelNotFoundError(*absent, "such a name can't be that of a model")
    hub = imported("huggingface_hub", extra, "for this model")
    try:
        folder = Path(hub.snapshot_download(model, revision=revision, allow_patterns=[*_FROM_HUB]))
    except hub.errors.LocalEntryNotFoundError as error:
        raise ModelNotFoundError(*absent, f"its cache lacks {model!r}, and it can't be reached") from error
    except (hub.errors.RepositoryNotFoundError, hub.errors.RevisionNotFoundError, ValueError) as error:
        raise ModelNotFoundError(*absent, str(error)) from error
    if not any((folder / name).exists() for name in _SAFETENSORS):
        patterns = [*_BIN, "pytorch_model-*-of-*.bin"]
        folder = Path(hub.snapshot_download(model, revision=folder.name, allow_patterns=patterns))
    return Place(folder, id or model, folder.name)  # a snapshot's folder is named by its commit


def _own_id(folder: Path) -> tuple[str, str | None]:
    """Return the id of the model in a folder, and its commit in a folder of the Hub's cache.

    The name that a config.json has may be that of the model before its training was continued. So it counts only if it
    is the folder's name too, or if that name says nothing.
    """
    if folder.parent.name == "snapshots" and (found := _HUB_FOLDER.fullmatch(folder.parent.parent.name)):
        return found[1].replace("--", "/"), folder.name
    card = folder / "README.md"
    title = _TITLE.search(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else None
    if title and _HUB_ID.fullmatch(title[1]):
        return title[1], None
    name = (read_json(folder / "config.json") or {}).get("_name_or_path")
    if isinstance(name, str) and _HUB_ID.fullmatch(name):
        same = name.rpartition("/")[2].lower() == folder.name.lower()
        if same or _NAMELESS.fullmatch(folder.name):
            return name, None
    return folder.name, None


def read_files(place: Place, modality: Modality | None) -> ModelFiles:
    """Read a model's files, except those of its processor and tokenizer.

    Parameters
    ----------
    place : Place
    modality : {"audio", "image", "text"} or None
        The tower, if the model has two.

    Raises
    ------
    ModelFilesError
        config.json or weights are missing, or a JSON file has the wrong type of content.
    UnknownModelError
        The type of model, a module of sentence-transformers or the kind of weights is not known.
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
    tower = tower_settings(family, settings)
    check_settings(place.id, {**tower, "auto_map": settings.get("auto_map")})
    if any(base.glob("adapter_*")):  # transformers would apply it if PEFT is installed and its config is there
        raise UnknownModelError(place.id, "an adapter", FAMILIES)
    names = [f"{transformer}/{name}".lstrip("/") for name in _weight_files(base)]
    for step in head.steps if head is not None else ():
        if step is not None:
            names += [f"{step.folder}/{name}" for name in _weight_files(folder / step.folder)]
    others.append(f"{transformer}/config.json".lstrip("/"))
    there = tuple(name for name in others if (folder / name).exists())
    return ModelFiles(place, base, settings, family, tower, tuple(names), there, head, sentence)


def _modules(folder: Path) -> list[dict[str, Any]]:
    """Return the modules of sentence-transformers. Check that their paths are below the model's folder."""
    modules: list[dict[str, Any]] = read_json(folder / "modules.json", list) or []
    for module in modules:
        path = module.get("path", "") if isinstance(module, dict) else None
        if not isinstance(path, str) or Path(path).is_absolute() or ".." in Path(path).parts:
            raise ModelFilesError(folder, f"modules.json whose paths are below it, but {module!r}")
    return modules


def _weight_files(folder: Path) -> list[str]:
    """List the files of weights that transformers loads from a folder."""
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
    """Return the content of a JSON file. None if the file does not exist.

    Parameters
    ----------
    path : Path
    kind : type
        The expected type of the content.

    Raises
    ------
    ModelFilesError
        The file is not JSON, or its content is of another type.
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
    """Return JSON of a model without `NOISE`, and with numbers that a config refuses as text.

    Parameters
    ----------
    value : mapping, list, str, number, bool or None
    """
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items() if k not in NOISE and not k.startswith("_attn_implementation")}
    if isinstance(value, list):
        return [plain(v) for v in value]
    odd = isinstance(value, int | float) and (
        abs(value) > 2**53 if isinstance(value, int) else not math.isfinite(value)
    )
    return str(value) if odd else value

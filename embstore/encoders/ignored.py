"""Find the settings and weights of a model that transformers would ignore: its rows would be those of another model.

`model_files` and `preprocessing` check the settings that all versions of transformers 5 ignore, before anything is
loaded. `loading` checks the others with the installed version.
"""

from __future__ import annotations

import inspect
import json
import logging
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from embstore.encoders.families import Family
from embstore.errors import IgnoredPartsError

logger = logging.getLogger("embstore")

NOISE: Final = frozenset(
    (
        *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "architectures"),
        *("transformers_version", "_name_or_path", "torch_dtype", "dtype", "use_cache", "_commit_hash"),
        *("processor_class", "_processor_class", "_valid_processor_keys", "use_fast", "device", "return_tensors"),
        *("image_processor_type", "feature_extractor_type", "backend", "disable_grouping"),
        "sampling_rate",  # is in the config as the rate of decoded clips
    )
)
"""Names in config.json and a processor's JSON that no value depends on, or that the config has under another name."""

_HARMLESS: Final = re.compile(
    r"_.*|.*_token_id|.*dropout.*|.*label.*|.*loss.*|.*initializer.*|.*config_dict|model_type"
    # numbers that feature extractors derive from others
    r"|mel_filters|chunk_length_s|n_fft|n_samples|nb_max_\w+"
    # of training, generation, export and other tools
    r"|(no_)?mask_(time|channel|feature)_.*|freeze_.*|replace_prob|gradient_checkpointing|adapters|language"
    r"|add_cross_attention|cross_attention_hidden_size|output_(attentions|past)|prefix|task_specific_params|torchscript"
    r"|tie_.*|tokenizer_class|use_bfloat16|sentence_transformers|stage_names|custom_pipelines|name_or_path"
    r"|\w*codevector\w*|num_negatives|tdnn_.*|xvector_.*|classifier_proj_size|generator_size|forced?_.*"
    # of the first BERT, ALBERT and CLAP, for parts that no library has
    r"|directionality|pooler_(fc|num|size|type)\w*|down_scale_factor|fusion_(hidden_size|num_hidden_layers)|enable_patch_fusion"
)
"""Other names of settings that no value of a model in evaluation mode depends on, but those that transformers knows."""

_DROPPED: Final = ("auto_map", "position_embedding_type", "pruned_heads")
"""Custom code, which is not run, and settings that transformers 4 had."""

_STOCK: Final = {"position_embedding_type": "absolute"}
"""Values at which an ignored setting changes nothing."""

_HEADS: Final = re.compile(
    r"cls|score|linear|dense|decoder|pooler|objective|quantizer|tdnn|layer_weights|sequence_summary|vocab_\w+"
    r"|logit_\w+|proj\w*|\w*(classifier|head|predictions|outputs|projection|regressor)"
    r"|feature_extractor\.(weight|bias)"  # of models that verify speakers
)
"""Parts of checkpoints that take the outputs of a model."""

_TOKENIZER_PARTS: Final = ("normalizer", "pre_tokenizer", "post_processor")

_PROBES: Final = (
    *("The Cat sat on the MAT, 123.45!", "  two  spaces\tand\nlines ", "Café naïve ÅNGSTRÖM ﬁ", "cafe\u0301 \u00a0x"),
    *("日本語の文", "don't e-mail a_b@c.d #tag", "🙂 emoji 👩‍👩‍👧", "İstanbul ß ЙОД", "a\u200bb \x07c"),
)
"""Texts at which normalizers and pre-tokenizers differ: case, accents, spaces, ideographs, punctuation, controls."""

_MOST_PROBES: Final = 200

_BUFFERS: Final = re.compile(r"(.*\.)?(position_ids|token_type_ids|relative_position_index)")
"""Constants that old checkpoints list."""


def check_settings(model: str, said: Mapping[str, Any], among: Iterable[str] = _DROPPED) -> None:
    """Raise IgnoredPartsError for settings of a model that transformers ignores, if they may change its values.

    Parameters
    ----------
    model : str
        The model's name, for the error.
    said : mapping
        JSON of the model: config.json, or that of its processor or tokenizer.
    among : iterable of str
        Names of ignored settings. By default, those that all versions of transformers 5 ignore.
    """
    lost = [name for name in among if not is_off(said.get(name)) and said[name] != _STOCK.get(name)]
    if lost:
        raise IgnoredPartsError(model, "settings", sorted(lost))


def check_unknown(model: str, said: Mapping[str, Any], used: Any, code: Any) -> None:
    """Raise IgnoredPartsError for settings that neither an object of transformers nor the code of its users knows.

    Parameters
    ----------
    model, said
        As in `check_settings`.
    used : object
        The config or processor that was made of these settings. One that was made of none knows all the others.
    code : type
        A class in whose module settings may be read that the config does not declare.
    """
    from transformers import GenerationConfig

    default, source = type(used)(), inspect.getsource(sys.modules[code.__module__])
    generation = GenerationConfig().to_dict()  # type: ignore[no-untyped-call]
    known = {*NOISE, *generation, *re.findall(r'config(?:\.|, ")(\w+)', source)}
    names = [name for name in said if not (name in known or hasattr(default, name) or is_harmless(name))]
    check_settings(model, said, names)


def is_harmless(name: str) -> bool:
    """Return whether no value of a model in evaluation mode depends on a setting of this name."""
    return name in NOISE or _HARMLESS.fullmatch(name) is not None


def check_tokenizer(model: str, tokenizer: Any, file: Path, said: Mapping[str, Any]) -> None:
    """Log a warning if a tokenizer gives other tokens than its tokenizer.json.

    transformers 5 builds the tokenizer of a class, such as `BertTokenizer`, from the vocabulary alone. The normalizer,
    pre-tokenizer and post-processor of the file are ignored. It is no error, because published models whose files have
    parts that the class lacks could not be used at all.

    Parameters
    ----------
    model : str
        The model's name, for the warning.
    tokenizer : PreTrainedTokenizerBase
    file : Path
        tokenizer.json.
    said : mapping
        tokenizer_config.json. Its options for BERT's normalizer were applied by transformers 4 too.
    """
    from tokenizers import Tokenizer, normalizers

    own, used = Tokenizer.from_file(str(file)), tokenizer.backend_tokenizer
    if isinstance(own.normalizer, normalizers.BertNormalizer):
        options = {"lowercase": "do_lower_case", "strip_accents": "strip_accents"}
        options["handle_chinese_chars"] = "tokenize_chinese_chars"
        changed = own.normalizer
        for name, option in options.items():
            setattr(changed, name, said.get(option, getattr(changed, name)))
        own.normalizer = changed
    parts = {name: [json.loads(each.to_str()).get(name) for each in (own, used)] for name in _TOKENIZER_PARTS}
    differing = [name for name, (first, second) in parts.items() if first != second]
    if not differing:
        return
    own.no_truncation()
    own.no_padding()
    written = re.findall(r'"(?:String|Regex|content)": *"((?:[^"\\\\]|\\\\.)+)"', file.read_text(encoding="utf-8"))
    for text in (*_PROBES, *written[:_MOST_PROBES], *sorted(own.get_vocab())[:_MOST_PROBES]):
        if own.encode(text).ids != tokenizer(text)["input_ids"]:
            logger.warning(
                "%s: transformers builds its tokenizer without the %s of %s, so some texts get other tokens",
                *(model, ", ".join(differing), file.name),
            )
            return


def is_off(value: Any) -> bool:
    """Return whether a setting is off or empty: None, False, 0, or a mapping of these."""
    return all(map(is_off, value.values())) if isinstance(value, Mapping) else not value


def check_weights(model: str, unexpected: Iterable[str], family: Family, loaded: Any) -> None:
    """Raise IgnoredPartsError for weights that were not loaded, unless no output of the model depends on them.

    Heads may be left out, constants, weights for training, and the tower that is not used.

    Parameters
    ----------
    model : str
        The model's name, for the error.
    unexpected : iterable of str
        Names of weights in the checkpoint that the loaded model lacks.
    family : Family
    loaded : PreTrainedModel
    """
    part = (family.section or "").removesuffix("_config")
    own = {f"{part}_model", family.head, loaded.base_model_prefix, *(name for name, _ in loaded.named_children())}

    def harmless(key: str) -> bool:
        first, _, rest = key.partition(".")
        inner = rest if first == loaded.base_model_prefix else key
        if _BUFFERS.fullmatch(key) or inner.startswith(family.ignored):
            return True
        other_tower = bool(part) and first in ("audio_model", "text_model", "vision_model")
        return bool(_HEADS.fullmatch(key)) or (first not in own and (other_tower or bool(_HEADS.fullmatch(first))))

    lost = [key for key in unexpected if not harmless(key)]
    if lost:
        raise IgnoredPartsError(model, "weights", sorted(lost))

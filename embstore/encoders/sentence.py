"""The head that sentence-transformers puts on a model: modules.json as poolings, linear layers and normalisation.

`model_files` finds the files, `outputs` pools tokens, `loading` loads the weights of the linear layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from embstore.encoders.families import FAMILIES
from embstore.encoders.ignored import is_off
from embstore.encoders.outputs import LAST, SENTENCE, pool
from embstore.errors import UnknownModelError

_POOLINGS: Final = {  # old key: mode, in the order in which several are joined
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS: Final = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.ReLU": "relu",
}
_SETTINGS: Final = frozenset(
    (
        *("max_seq_length", "do_lower_case", "transformer_task", "modality_config", "processing_kwargs"),
        *("unpad_inputs", "query_expansion", "document_length", "word_embedding_dimension", "embedding_dimension"),
        *("include_prompt", "pooling_mode", *_POOLINGS, "in_features", "out_features", "bias", "activation_function"),
        *("use_residual", "module_input_name", "module_output_name"),
        *("__version__", "prompts", "default_prompt_name", "similarity_fn_name", "model_type"),
    )
)
"""Settings of the modules and of the whole model that are heeded here, or that no value depends on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """A linear layer over the pooled vector. Its weights are in a folder of their own."""

    folder: str
    size: int
    activation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceHead:
    """The head of a sentence-transformers model: joined poolings, then linear layers and normalisation.

    Attributes
    ----------
    poolings : tuple of str
    steps : tuple of Dense or None
        None stands for normalisation to length one.
    prompt : str
        Text that is put before each text.
    """

    poolings: tuple[str, ...]
    steps: tuple[Dense | None, ...]
    prompt: str = ""

    def size(self, dim: int) -> int:
        """Return the size of the embedding, from the size of a token."""
        sizes = [step.size for step in self.steps if step is not None]
        return sizes[-1] if sizes else dim * len(self.poolings)

    def describe(self) -> list[dict[str, Any]]:
        """Return the part of an encoder's config about this head."""
        later = [
            {"type": "Normalize"} if step is None else {"type": "Dense", "activation": step.activation}
            for step in self.steps
        ]
        return [{"type": "Pooling", "modes": list(self.poolings)}, *later]

    def apply(self, tokens: Any, mask: Any, weights: Mapping[str, Mapping[str, Any]]) -> Any:
        """Return embeddings of tokens, ``(n, size) float32``. `weights` are by the linear layers' folders."""
        import torch
        from torch.nn.functional import linear, normalize

        vectors = torch.cat([pool(tokens, pooling, mask) for pooling in self.poolings], dim=-1)
        for step in self.steps:
            if step is None:
                vectors = normalize(vectors, dim=-1)
            else:
                own = weights[step.folder]
                vectors = linear(vectors, own["linear.weight"], own.get("linear.bias"))
                vectors = vectors if step.activation == "identity" else getattr(torch, step.activation)(vectors)
        return vectors


def sentence_head(
    model: str, modules: Sequence[Mapping[str, Any]], own: Mapping[str, Any], read: Callable[[str], Any]
) -> SentenceHead:
    """Return the head that modules.json describes.

    Parameters
    ----------
    model : str
        The model's name, for errors.
    modules : sequence of mapping
        modules.json.
    own : mapping
        sentence_bert_config.json.
    read : callable
        Takes a path below the model's folder. Returns the JSON of that file, or an empty mapping without the file.

    Raises
    ------
    UnknownModelError
        A module, or an option of a module, is not known.
    """

    def refuse(what: str) -> UnknownModelError:
        return UnknownModelError(model, f"sentence-transformers: {what}", FAMILIES)

    kinds = [str(module.get("type", "")) for module in modules]
    names = [kind.rpartition(".")[2] for kind in kinds]
    if not all(kind.startswith("sentence_transformers.") for kind in kinds):
        raise refuse(", ".join(kinds))
    if names[:2] != ["Transformer", "Pooling"] or not {*names[2:]} <= {"Dense", "Normalize"}:
        raise refuse(", ".join(names))
    folders = [str(module.get("path", "")) for module in modules]
    options = [read(f"{folder}/config.json") if folder else {} for folder in folders]
    plain = {"text": {"method": "forward", "method_output_name": LAST}}
    way = (own.get("modality_config") or plain).get("text", {})
    for name, found, known in (
        ("transformer_task", own.get("transformer_task", "feature-extraction"), "feature-extraction"),
        ("processing_kwargs", own.get("processing_kwargs") or {}, {}),
        ("query_expansion", own.get("query_expansion"), None),
        ("document_length", own.get("document_length"), None),
        ("modality_config", (way.get("method"), way.get("method_output_name")), ("forward", LAST)),
    ):
        if found != known:
            raise refuse(f"{name} {found!r}")
    overall = read("config_sentence_transformers.json")
    for name, said in (("model", overall), (names[0], own), *zip(names[1:], options[1:], strict=True)):
        for setting, value in said.items():
            if setting not in _SETTINGS and not is_off(value):
                raise refuse(f"{name} with {setting} {value!r}")
    prompt = (overall.get("prompts") or {}).get(overall.get("default_prompt_name")) or ""
    if prompt and not options[1].get("include_prompt", True):
        raise refuse("a default prompt that is left out of the pooling")
    modes = options[1].get("pooling_mode") or [mode for key, mode in _POOLINGS.items() if options[1].get(key)]
    poolings = (modes,) if isinstance(modes, str) else tuple(modes) or ("mean",)
    if not {*poolings} <= {*_POOLINGS.values()}:
        raise refuse(f"pooling {poolings}")
    steps: list[Dense | None] = []
    for name, folder, said in zip(names[2:], folders[2:], options[2:], strict=True):
        if {said.get("module_input_name", SENTENCE), said.get("module_output_name") or SENTENCE} != {SENTENCE}:
            raise refuse(f"{name} of {said['module_input_name']}")
        if name == "Normalize":
            steps.append(None)
            continue
        activation = said.get("activation_function", "torch.nn.modules.activation.Tanh")
        if activation not in _ACTIVATIONS or said.get("use_residual"):
            raise refuse(f"Dense with {activation}" + (" and a residual" if said.get("use_residual") else ""))
        steps.append(Dense(folder=folder, size=int(said["out_features"]), activation=_ACTIVATIONS[activation]))
    return SentenceHead(poolings=poolings, steps=tuple(steps), prompt=prompt)

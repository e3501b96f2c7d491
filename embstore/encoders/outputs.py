"""The names of a model's outputs: what each means, the field that it makes, and how it is pooled from tokens.

A name is ``layer[.pooling]``. Layers are ``last_hidden_state``, ``layer_0`` (the embeddings) to ``layer_N``, and what
the model pools itself: ``pooler_output``, ``embeds``, ``sentence_embedding``. Poolings are ``mean`` and ``max``, over
the tokens that are not padding, and ``cls``, the first token; alone, they are those of ``last_hidden_state``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from embstore.encoders.families import FAMILIES, Anatomy
from embstore.errors import DtypeError, UnknownFieldError, UnknownModelError
from embstore.schema import FieldSpec, check_name, dtype_name

__all__ = ["Dense", "Output", "Pass", "SentenceHead", "available", "declare", "pool", "sentence_head"]

LAST: Final = "last_hidden_state"
SENTENCE: Final = "sentence_embedding"
DTYPES: Final = ("float32", "float16", "bfloat16")
_LAYER: Final = re.compile(r"layer_(0|[1-9][0-9]*)")


@dataclass(frozen=True, slots=True)
class Output:
    """One output: a layer's tokens, pooled or not, or a vector of the model's own; and the field that it makes."""

    layer: str
    pooling: str | None
    spec: FieldSpec

    @property
    def number(self) -> int | None:
        """Which of the hidden states it is of; None, if of none by number."""
        found = _LAYER.fullmatch(self.layer)
        return int(found[1]) if found else None


@dataclass(slots=True)
class Pass:
    """What one forward pass gave for a batch, of that which was asked for.

    Attributes
    ----------
    layers : dict of str to tensor
        ``(n, tokens, dim)``.
    vectors : dict of str to tensor
        ``(n, size)``.
    mask : tensor or None
        ``(n, tokens) bool``: False at padding; None, where there is none.
    lengths : list of int or None
        Tokens of each sample, where each has its own number.
    """

    layers: dict[str, Any] = field(default_factory=dict)
    vectors: dict[str, Any] = field(default_factory=dict)
    mask: Any = None
    lengths: list[int] | None = None


def available(anatomy: Anatomy) -> tuple[str, ...]:
    """List the names that a model's fields can have; each layer can be pooled as well."""
    names = [*anatomy.vectors, *anatomy.aliases]
    if anatomy.layers is not None:
        poolings = ("mean", "max", *(("cls",) if anatomy.class_token else ()))
        layers = (LAST, *(f"layer_{n}" for n in range(anatomy.layers + 1)))
        names += [*poolings, *layers, *(f"{layer}.{pooling}" for layer in layers for pooling in poolings)]
    return tuple(names)


def declare(
    wanted: Sequence[str] | Mapping[str, str], dtypes: str | Mapping[str, str], anatomy: Anatomy
) -> dict[str, Output]:
    """Look up the outputs that fields are to hold.

    Parameters
    ----------
    wanted : sequence or mapping
        Names of outputs, or these by the fields' own names.
    dtypes : str or mapping
        Stored dtype of all fields, or by field; float32 of those left out.
    anatomy : Anatomy

    Raises
    ------
    UnknownFieldError
        The model has no such output.
    DtypeError
        Not float32, float16 or bfloat16.
    NameRefusedError
        Not a name for a field.
    """
    if isinstance(wanted, str):
        raise TypeError(f"expected a list of fields, found one: {wanted!r}")
    names = dict(wanted) if isinstance(wanted, Mapping) else {name: name for name in wanted}
    if not names:
        raise UnknownFieldError(None, available(anatomy))
    if isinstance(dtypes, Mapping):
        for name in dtypes:
            if name not in names:
                raise UnknownFieldError(name, names)
    outputs: dict[str, Output] = {}
    for name, output in names.items():
        dtype = dtypes.get(name, "float32") if isinstance(dtypes, Mapping) else dtypes
        found = dtype_name(dtype)
        if found not in DTYPES:
            raise DtypeError(name, expected=" or ".join(DTYPES), found=dtype)
        outputs[check_name(name, outputs)] = _look_up(output, found, anatomy)
    return outputs


def _look_up(name: str, dtype: str, anatomy: Anatomy) -> Output:
    if name not in available(anatomy):
        raise UnknownFieldError(name, available(anatomy))
    name = anatomy.aliases.get(name, name)
    if name in anatomy.vectors:
        return Output(name, None, FieldSpec(shape=(anatomy.vectors[name],), dtype=dtype, layer=name))
    layer, _, pooling = name.rpartition(".") if "." in name else (name, "", "")
    if name in ("mean", "max", "cls"):
        layer, pooling = LAST, name
    if pooling:
        return Output(layer, pooling, FieldSpec(shape=(anatomy.dim,), dtype=dtype, layer=layer, pooling=pooling))
    ragged = anatomy.tokens is None
    shape = (anatomy.dim,) if anatomy.tokens is None else (anatomy.tokens, anatomy.dim)
    return Output(layer, None, FieldSpec(shape=shape, dtype=dtype, layer=layer, ragged=ragged))


def rows(output: Output, done: Pass, dtype: Any) -> Any:
    """Return an output's rows of a batch on the CPU, as copies that keep nothing else of the pass alive.

    Returns
    -------
    tensor, (n, *shape), or list of tensor, (length, dim)
        A list, if the field is ragged.
    """
    if output.layer in done.vectors:
        return done.vectors[output.layer].to("cpu", dtype, copy=True)
    tokens = done.layers[output.layer]
    if output.pooling is not None:
        return pool(tokens, output.pooling, done.mask).to("cpu", dtype)
    if not output.spec.ragged:
        return tokens.to("cpu", dtype, copy=True)
    whole = tokens.to("cpu", dtype)
    lengths = done.lengths or [whole.shape[1]] * len(whole)
    return [row[:length].clone() for row, length in zip(whole, lengths, strict=True)]


def pool(tokens: Any, pooling: str, mask: Any = None) -> Any:
    """Pool tokens in float32.

    Parameters
    ----------
    tokens : tensor, (n, tokens, dim)
    pooling : str
        "mean", "max" or "cls"; of sentence-transformers also "mean_sqrt_len_tokens", "weightedmean", "lasttoken".
    mask : tensor, optional
        ``(n, tokens) bool``, False at padding, which lies at the end.

    Returns
    -------
    tensor, (n, dim) float32
    """
    if pooling == "cls":
        return tokens[:, 0].float()
    tokens = tokens.float()
    kept = tokens.new_ones(tokens.shape[:2]) if mask is None else mask.to(tokens.dtype)
    kept = kept.unsqueeze(-1)
    if pooling == "max":
        return tokens.masked_fill(kept == 0, float("-inf")).amax(1)
    if pooling == "lasttoken":
        last = (kept.sum(1, keepdim=True).long() - 1).expand(-1, -1, tokens.shape[-1])
        return tokens.gather(1, last).squeeze(1)
    if pooling == "weightedmean":  # later tokens weigh more
        kept = kept * kept.cumsum(1)
    total, count = (tokens * kept).sum(1), kept.sum(1)
    return total / (count.sqrt() if pooling == "mean_sqrt_len_tokens" else count)


# -- sentence-transformers ----------------------------------------------------------------------

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """A linear layer over the pooled vector; its weights lie in a folder of its own."""

    folder: str
    size: int
    activation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceHead:
    """What sentence-transformers does to tokens: several poolings joined, then linear layers and normalisation.

    Attributes
    ----------
    transformer : str
        The folder of the model itself, below that of modules.json.
    poolings : tuple of str
    steps : tuple of Dense or None
        None normalises to length one.
    prompt : str
        Put before each text.
    """

    transformer: str
    poolings: tuple[str, ...]
    steps: tuple[Dense | None, ...]
    prompt: str = ""

    def size(self, dim: int) -> int:
        """Return the size of the embedding, from that of a token."""
        sizes = [step.size for step in self.steps if step is not None]
        return sizes[-1] if sizes else dim * len(self.poolings)

    def describe(self) -> list[dict[str, Any]]:
        """Return what of this belongs in an encoder's config."""
        later = [
            {"type": "Normalize"} if step is None else {"type": "Dense", "activation": step.activation}
            for step in self.steps
        ]
        return [{"type": "Pooling", "modes": list(self.poolings)}, *later]

    def apply(self, tokens: Any, mask: Any, weights: Mapping[str, Mapping[str, Any]]) -> Any:
        """Turn tokens into embeddings, ``(n, size) float32``; weights are by the linear layers' folders."""
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
    """Say what modules.json makes of a model's tokens.

    Parameters
    ----------
    model : str
        For errors.
    modules : sequence of mapping
        modules.json.
    own : mapping
        sentence_bert_config.json.
    read : callable
        Returns a JSON file of the model's folder, by its path there; an empty mapping if there is none.

    Raises
    ------
    UnknownModelError
        A module, or an option of one, that is not known.
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
    return SentenceHead(transformer=folders[0], poolings=poolings, steps=tuple(steps), prompt=prompt)

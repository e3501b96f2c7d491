"""The names of a model's outputs, the fields that they make, and pooling.

A name is ``layer[.pooling]``. Layers are ``last_hidden_state``, ``layer_0`` (the embeddings) to ``layer_N``, and the
outputs that the model pools itself: ``pooler_output``, ``embeds``, ``sentence_embedding``. The poolings ``mean`` and
``max`` run over the tokens without padding, ``cls`` is the first token. A pooling alone is that of
``last_hidden_state``. `model_shapes` lists the outputs of a model, `sentence` computes those of sentence-transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from embstore._engine.format.record import FieldSpec, check_name, dtype_name
from embstore.encoders.model_shapes import ModelShapes
from embstore.errors import DtypeError, UnknownFieldError

LAST: Final = "last_hidden_state"
"""The tokens of the last layer. A pooling without a layer applies to these."""

SENTENCE: Final = "sentence_embedding"
"""The vector that sentence-transformers computes from these tokens."""

DTYPES: Final = ("float32", "float16", "bfloat16")
"""Dtypes that outputs can be stored in."""


@dataclass(frozen=True, slots=True)
class Output:
    """One output, and its field: a layer's tokens, pooled or not, or a vector that the model pools itself."""

    layer: str
    pooling: str | None
    spec: FieldSpec

    @property
    def number(self) -> int | None:
        """The number of the hidden state. None for ``last_hidden_state`` and for vectors."""
        return int(self.layer.removeprefix("layer_")) if self.layer.startswith("layer_") else None


@dataclass(slots=True)
class Pass:
    """The requested outputs of one forward pass over a batch.

    Attributes
    ----------
    layers : dict of str to tensor
        ``(n, tokens, dim)``.
    vectors : dict of str to tensor
        ``(n, size)``.
    mask : tensor or None
        ``(n, tokens) bool``, False at padding. None without padding.
    lengths : list of int or None
        Tokens of each sample, if the number differs between samples.
    """

    layers: dict[str, Any] = field(default_factory=dict)
    vectors: dict[str, Any] = field(default_factory=dict)
    mask: Any = None
    lengths: list[int] | None = None


def available(shapes: ModelShapes) -> tuple[str, ...]:
    """List the names of a model's outputs, with the poolings of each layer."""
    names = [*shapes.vectors, *shapes.aliases]
    if shapes.layers is not None:
        poolings = ("mean", "max", *(("cls",) if shapes.class_token else ()))
        layers = (LAST, *(f"layer_{n}" for n in range(shapes.layers + 1)))
        names += [*poolings, *layers, *(f"{layer}.{pooling}" for layer in layers for pooling in poolings)]
    return tuple(names)


def declare(
    wanted: Sequence[str] | Mapping[str, str], dtypes: str | Mapping[str, str], shapes: ModelShapes
) -> dict[str, Output]:
    """Return the outputs for fields, by the fields' names.

    Parameters
    ----------
    wanted : sequence or mapping
        Names of outputs, or a mapping of the fields' own names to names of outputs.
    dtypes : str or mapping
        Stored dtype of all fields, or by field. Fields that a mapping leaves out are float32.
    shapes : ModelShapes

    Raises
    ------
    UnknownFieldError
        The model has no such output.
    DtypeError
        The dtype is not float32, float16 or bfloat16.
    NameRefusedError
        The name is not a name for a field.
    """
    if isinstance(wanted, str):
        raise TypeError(f"expected a list of fields, found one: {wanted!r}")
    names = dict(wanted) if isinstance(wanted, Mapping) else {name: name for name in wanted}
    if not names:
        raise UnknownFieldError(None, available(shapes))
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
        outputs[check_name(name, outputs)] = _look_up(output, found, shapes)
    return outputs


def _look_up(name: str, dtype: str, shapes: ModelShapes) -> Output:
    if name not in available(shapes):
        raise UnknownFieldError(name, available(shapes))
    name = shapes.aliases.get(name, name)
    if name in shapes.vectors:
        return Output(name, None, FieldSpec(shape=(shapes.vectors[name],), dtype=dtype, layer=name))
    layer, _, pooling = name.rpartition(".") if "." in name else (name, "", "")
    if name in ("mean", "max", "cls"):
        layer, pooling = LAST, name
    if pooling:
        return Output(layer, pooling, FieldSpec(shape=(shapes.dim,), dtype=dtype, layer=layer, pooling=pooling))
    ragged = shapes.tokens is None
    shape = (shapes.dim,) if shapes.tokens is None else (shapes.tokens, shapes.dim)
    return Output(layer, None, FieldSpec(shape=shape, dtype=dtype, layer=layer, ragged=ragged))


def rows(output: Output, done: Pass, dtype: Any) -> Any:
    """Return an output's rows of a batch on the CPU. Rows are copies, so the memory of the pass can be freed.

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
        "mean", "max" or "cls". For sentence-transformers also "mean_sqrt_len_tokens", "weightedmean", "lasttoken".
    mask : tensor, optional
        ``(n, tokens) bool``, False at padding. Padding is at the end.

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

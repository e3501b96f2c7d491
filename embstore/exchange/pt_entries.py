"""Entries: what a dictionary of tensors, or a file with an array for each key, gives; one entry a row.

How a dictionary is loaded and saved, `embstore.exchange.pt` says.
"""

from __future__ import annotations

import functools
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from embstore._engine.format.ragged import Ragged, offsets_of
from embstore._engine.format.record import BFLOAT16, FIELD_DTYPES, STRING, FieldSpec, check_name, dtype_name
from embstore._engine.read.dtypes import converted
from embstore.errors import FileFormatError
from embstore.exchange.file_contents import (
    BLOCK_BYTES,
    BLOCK_ROWS,
    Array,
    Block,
    RowName,
    Table,
    Unreadable,
    check_claim,
)
from embstore.exchange.import_options import ImportOptions, chosen_columns
from embstore.exchange.naming import row_name
from embstore.exchange.scalars import column_of

EMBEDDING: Final = ("embedding", "embeddings")
_LABEL: Final = "class_name"
DEFAULT_FIELD: Final = "embedding"
_KEYS_AT_ONCE: Final = 256
"""So few that they are gone before the garbage collector takes them for lasting, and looks at all tensors too: with
65,536, naming 200,000 entries took three times as long."""


@dataclass(frozen=True, slots=True)
class Unread:
    """An array that is still in its file.

    Attributes
    ----------
    shape : tuple of int
    dtype : str
    read : callable
        Returns it; bfloat16 as its bits.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Array]


@dataclass(kw_only=True)
class EntriesTable(Table):
    """Entries of a dictionary.

    Attributes
    ----------
    names, labels : list
        What they are called, and the class of each, None where it is not told.
    tensors : dict of str to list
        By field, a tensor or array for each.
    values : dict of str to sequence
        By column.
    options : ImportOptions
    squeezed : bool
        Whether the first axis of each tensor is left out.
    """

    names: list[Any]
    labels: list[Any]
    tensors: dict[str, list[Any]]
    values: dict[str, Array | list[str]]
    options: ImportOptions
    squeezed: bool = False

    def row_names(self) -> Iterator[list[RowName]]:
        """Yield the names of entries."""
        for start in range(0, self.rows, _KEYS_AT_ONCE):
            stop = start + _KEYS_AT_ONCE
            pairs = zip(self.names[start:stop], self.labels[start:stop], strict=True)
            yield [row_name(name, label, self.options, self.path) for name, label in pairs]

    def field(self, name: str) -> Iterator[Block]:
        """Yield tensors, put together in blocks."""
        yield from blocks_of(self.tensors[name], self.fields[name], squeezed=self.squeezed)

    def column(self, name: str) -> Iterator[Array | list[str]]:
        """Yield the values of a column."""
        yield self.values[name]


def blocks_of(tensors: Sequence[Any], spec: FieldSpec, *, squeezed: bool) -> Iterator[Block]:
    """Yield tensors, or arrays, put together in blocks."""
    start, token_nbytes = 0, spec.row_nbytes
    while start < len(tensors):
        stop, nbytes = start, 0
        while stop < min(len(tensors), start + BLOCK_ROWS) and nbytes < BLOCK_BYTES:
            nbytes += token_nbytes * (tensors[stop].shape[squeezed] if spec.ragged else 1)
            stop += 1
        yield Block(_together(tensors[start:stop], spec, squeezed))
        start = stop


def _together(tensors: Sequence[Any], spec: FieldSpec, squeezed: bool) -> Array | Ragged:
    """Copy tensors, or arrays, into one array of a field's rows."""
    # One by one, straight to its place: torch.stack takes as long, and memory for a view of each.
    if not spec.ragged:
        out = np.empty((len(tensors), *spec.shape), spec.zarr_dtype)
        for place, tensor in enumerate(tensors):
            out[place] = numbers_of(tensor, spec.dtype).reshape(spec.shape)
        return out
    offsets = offsets_of(np.array([tensor.shape[squeezed] for tensor in tensors], np.int64))
    out = np.empty((int(offsets[-1]), *spec.shape), spec.zarr_dtype)
    for tensor, start, stop in zip(tensors, offsets.tolist(), offsets.tolist()[1:], strict=False):
        out[start:stop] = numbers_of(tensor, spec.dtype).reshape(-1, *spec.shape)
    return Ragged(out, offsets)


def numbers_of(tensor: Any, dtype: str) -> Array:
    """Return a tensor's numbers, bfloat16 as its bits, without a copy if they are of this dtype."""
    if isinstance(tensor, Unread):
        return converted(tensor.read(), tensor.dtype, dtype)
    if isinstance(tensor, np.ndarray):
        return converted(tensor, tensor.dtype.name, dtype)
    if _dtype(tensor.dtype) == dtype != BFLOAT16 and not tensor.requires_grad:
        numbers: Array = tensor.numpy(force=tensor.is_neg())
        return numbers
    import torch

    tensor = tensor.detach().to(getattr(torch, dtype))
    if dtype == BFLOAT16:
        tensor = tensor.contiguous().view(torch.int16)
    numbers = tensor.resolve_neg().numpy()
    return numbers.view(np.uint16) if dtype == BFLOAT16 else numbers


# -- what is an entry -----------------------------------------------------------------------------


def entries_table(
    path: Path,
    entries: Mapping[Any, Any],
    options: ImportOptions,
    left_out: list[Unreadable],
    unreadable: list[Unreadable],
) -> EntriesTable:
    """Say what the entries of a dictionary give.

    The field's shape and dtype are those of most entries. A first axis of one is left out if all entries have it (a
    batch of one, as models give it).

    Raises
    ------
    FileFormatError
        None of them is an embedding.
    """
    torch = sys.modules.get("torch")
    # Lists side by side: a tuple for each of 200,000 entries keeps the garbage collector busy.
    names, tensors, others, kinds = [], [], [], []
    codes: dict[tuple[Any, Any], int] = {}
    for name, value in entries.items():
        tensor, entry, reason = _parts(value, torch)
        if reason:
            unreadable.append(Unreadable(name, reason))
            continue
        names.append(name)
        tensors.append(tensor)
        others.append(entry)
        kinds.append(codes.setdefault((tensor.shape, tensor.dtype), len(codes)))
    if not names:
        shown = ", ".join(f"{one.key!r}: {one.reason}" for one in unreadable[:3]) or "it is empty"
        raise FileFormatError(path, f"it is a dictionary without embeddings ({shown})")
    counted = dict(zip(codes, np.bincount(kinds).tolist(), strict=True))
    check_claim(path, sum(math.prod(shape) * count for (shape, _), count in counted.items()))
    squeezed = all(len(shape) > 1 and shape[0] == 1 for shape, _ in codes)
    spec = _spec_of_most(counted, squeezed, options.ragged)
    if spec is None:
        raise FileFormatError(path, f"its tensors have no values: the first is {tuple(tensors[0].shape)}")
    misfits = [_misfit(tuple(shape)[squeezed:], _dtype(dtype), spec, options) for shape, dtype in codes]
    if any(misfits):
        unreadable += [Unreadable(n, misfits[kind]) for n, kind in zip(names, kinds, strict=True) if misfits[kind]]
        names, tensors, others = (
            [one for one, kind in zip(values, kinds, strict=True) if not misfits[kind]]
            for values in (names, tensors, others)
        )
    values = _columns(others, options, left_out, path)
    field = check_name(options.field or DEFAULT_FIELD)
    return EntriesTable(
        path=path,
        config=None,
        fields={field: spec},
        columns={name: STRING if isinstance(found, list) else found.dtype.name for name, found in values.items()},
        rows=len(names),
        unreadable=unreadable,
        left_out=left_out,
        names=names,
        labels=[entry.get(_LABEL) for entry in others],
        tensors={field: tensors},
        values=values,
        options=options,
        squeezed=squeezed,
    )


_NOTHING: Final[Mapping[str, Any]] = {}


_dtype = functools.lru_cache(dtype_name)


def _parts(value: Any, torch: Any) -> tuple[Any, Mapping[str, Any], str]:
    """Return an entry's tensor, what else is in it, and why it can't be a row."""
    if not isinstance(value, dict):
        return value, _NOTHING, refusal(value, torch)
    there = [name for name in EMBEDDING if name in value]
    if len(there) != 1:
        return None, value, f"expected one of {' and '.join(map(repr, EMBEDDING))} in it, found {len(there)}"
    return value[there[0]], value, refusal(value[there[0]], torch)


def refusal(value: Any, torch: Any) -> str:
    """Say why a value can't be a row; "" if it can. `torch` is the module, None where it is not loaded."""
    if not isinstance(value, np.ndarray | Unread):
        if torch is None or type(value) not in (torch.Tensor, torch.nn.Parameter):
            return f"expected a tensor or an array, found {type(value).__name__}"
        if value.layout is not torch.strided or not value.is_cpu or value.is_nested:
            return "expected a plain tensor, found a sparse or nested one, or one without values"
    return "" if _dtype(value.dtype) in FIELD_DTYPES else f"{_dtype(value.dtype)} is not stored"


def _spec_of_most(counted: Mapping[tuple[Any, Any], int], squeezed: bool, ragged: bool) -> FieldSpec | None:
    """Describe the field that most tensors are rows of; None, if there can be none."""
    shapes, dtypes = Counter[tuple[int, ...]](), Counter[str]()
    for (shape, dtype), count in counted.items():
        shape = tuple(shape)[squeezed:]
        if len(shape) >= ragged and 0 not in shape[ragged:]:
            shapes[shape[ragged:]] += count
            dtypes[_dtype(dtype)] += count
    if not shapes:
        return None
    return FieldSpec(shape=shapes.most_common(1)[0][0], dtype=dtypes.most_common(1)[0][0], ragged=ragged)


def _misfit(shape: tuple[int, ...], dtype: str, spec: FieldSpec, options: ImportOptions) -> str:
    if spec.ragged:
        if not shape or shape[1:] != spec.shape:
            return f"its shape is {shape}, that of most (length, {', '.join(map(str, spec.shape))})"
    elif shape != spec.shape:
        hint = "; ragged=True keeps rows of different lengths" if shape[1:] == spec.shape[1:] else ""
        return f"its shape is {shape}, that of most {spec.shape}{hint}"
    if dtype != spec.dtype:
        floats = all(name.startswith(("float", BFLOAT16)) for name in (dtype, spec.dtype))
        if options.casting == "no" or not floats:
            hint = '; casting="same_kind" converts it' if floats else ""
            return f"it is {dtype}, most are {spec.dtype}{hint}"
    return ""


def _columns(
    entries: Sequence[Mapping[str, Any]], options: ImportOptions, left_out: list[Unreadable], path: Path
) -> dict[str, Array | list[str]]:
    """Make columns of what else most entries have."""
    found: dict[str, Array | list[str]] = {}
    names = dict.fromkeys(name for entry in entries for name in entry if name not in (*EMBEDDING, _LABEL))
    taken = set(map(str, names)) if options.columns is None else set(options.columns)
    for name in names:
        if str(name) in taken:
            values = column_of(name, [entry.get(name) for entry in entries])
            if isinstance(values, Unreadable):
                left_out.append(values)
            else:
                found[name] = values
    chosen_columns(list(found), options.columns, path)
    return found

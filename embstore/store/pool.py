"""Pool the tokens of each row to one vector: on the fly, and as a new field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np

from embstore._engine.format.arguments import check_choice
from embstore._engine.format.ragged import Ragged
from embstore._engine.format.record import BFLOAT16, FieldSpec
from embstore._engine.format.zarr_layout import blank
from embstore._engine.read.column import Rows
from embstore._engine.read.dtypes import as_numbers
from embstore._engine.read.read_rows import read_field
from embstore._engine.read.snapshot import Snapshot
from embstore._engine.write.plans import Plan, row_blocks
from embstore._engine.write.record_edits import with_field
from embstore.errors import ShapeError

How = Literal["mean", "max", "cls", "first", "last"]
"""Way to pool tokens. "cls" is the first token too, where a model puts its class token."""


def pooled_spec(field: str, spec: FieldSpec, how: How) -> FieldSpec:
    """Return the spec of a pooled field.

    Raises
    ------
    ShapeError
        The rows of the field are no tokens: it is not ragged, and its rows have one dimension.
    """
    check_choice("how", how, get_args(How))
    if not spec.ragged and len(spec.shape) < 2:
        raise ShapeError(field, expected="rows of tokens, (tokens, dim)", found=f"rows of shape {spec.shape}")
    dtype = "float32" if spec.dtype == BFLOAT16 or (how == "mean" and spec.dtype != "float64") else spec.dtype
    shape = spec.shape if spec.ragged else spec.shape[1:]
    layer = field if spec.layer is None else spec.layer
    return FieldSpec(shape=shape, dtype=dtype, layer=layer, pooling=how, nonfinite=spec.nonfinite)


def pooled_blocks(snapshot: Snapshot, field: str, rows: Rows, how: How) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the pooled rows of a field, a block at a time. Means are computed in float64.

    Raises
    ------
    ShapeError
        Rows have no tokens.
    """
    spec = snapshot.record.fields[field]
    wanted = pooled_spec(field, spec, how)
    for block in row_blocks(snapshot, rows):
        values = as_numbers(read_field(snapshot, field, block), spec)
        if isinstance(values, Ragged):
            found = _of_ragged(field, snapshot, block, values, how)
        elif how in ("mean", "max"):
            found = values.mean(axis=1, dtype=np.float64) if how == "mean" else values.max(axis=1)
        else:
            found = values[:, -1 if how == "last" else 0]
        yield found.astype(wanted.dtype, copy=False)


def _of_ragged(field: str, snapshot: Snapshot, rows: Rows, values: Ragged, how: How) -> Any:
    tokens, starts, ends = values.values, values.offsets[:-1], values.offsets[1:]
    if len(empty := np.flatnonzero(starts == ends)):
        keys = ", ".join(snapshot.keys_of(rows[empty[:5]]))
        raise ShapeError(field, expected="one token or more in each row", found=f"none in {len(empty)} row(s): {keys}")
    if how == "mean":
        lengths = (ends - starts).reshape(-1, *[1] * (tokens.ndim - 1))
        return np.add.reduceat(tokens, starts, dtype=np.float64) / lengths if len(starts) else tokens[:0]
    if how == "max":
        return np.maximum.reduceat(tokens, starts) if len(starts) else tokens[:0]
    return tokens[ends - 1 if how == "last" else starts]


def plan_pooled(snapshot: Snapshot, name: str, field: str, how: How) -> Plan:
    """Plan a field of the pooled rows of another, which are read while they are written."""
    record = with_field(snapshot.record, name, pooled_spec(field, snapshot.record.fields[field], how))
    checked = snapshot.checked()  # a new checksum must not cover up a flipped bit

    def blocks() -> Iterator[np.ndarray[Any, Any]]:
        array, every = record.arrays[name], np.arange(record.rows)
        for block in row_blocks(checked, every):
            there = ~snapshot.is_dead(block)
            whole = np.full((len(block), *array.shape), blank(array), dtype=array.dtype)
            if there.any():
                whole[there] = np.concatenate(list(pooled_blocks(checked, field, block[there], how)))
            yield whole

    return Plan(record, {name: blocks()} if record.rows else {})

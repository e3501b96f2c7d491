"""Rows as tensors. Calls import torch, importing this module does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from embstore._engine.format.ragged import Ragged
from embstore._engine.format.record import BFLOAT16, FieldSpec
from embstore._engine.lazy import imported
from embstore._engine.read.column import Rows
from embstore._engine.read.read_rows import read_field
from embstore._engine.read.snapshot import Snapshot

if TYPE_CHECKING:
    import torch


def as_tensor(values: np.ndarray[Any, Any], spec: FieldSpec | None = None) -> torch.Tensor:
    """Return rows as a tensor without a copy. For a bfloat16 field the stored bits become bfloat16."""
    imported("torch", "torch", "for a tensor")
    import torch

    if spec is not None and spec.dtype == BFLOAT16:
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def field_tensors(snapshot: Snapshot, name: str, rows: Rows) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Copy rows of a field to a tensor ``(n, *shape)``.

    Rows of a ragged field are padded to ``(n, longest, *shape)``, and their lengths ``(n,) int64`` come second.
    """
    values, lengths = read_field(snapshot, name, rows), None
    if isinstance(values, Ragged):
        values, lengths = values.padded()
    rows_read = as_tensor(values, snapshot.record.fields[name])
    return rows_read, None if lengths is None else as_tensor(lengths)

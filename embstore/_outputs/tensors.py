"""Rows as tensors, without a copy. Imports torch when it is called, and only then."""

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
    """Show rows (of a field) as a tensor without a copy; bits of bfloat16 as what they are."""
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

"""Rows as tensors, without a copy. Imports torch when it is called, and only then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from embstore._engine.format.record import BFLOAT16, FieldSpec
from embstore._engine.lazy import imported

if TYPE_CHECKING:
    import torch


def as_tensor(values: np.ndarray[Any, Any], spec: FieldSpec | None = None) -> torch.Tensor:
    """Show rows (of a field) as a tensor without a copy; bits of bfloat16 as what they are."""
    imported("torch", "torch", "for a tensor")
    import torch

    if spec is not None and spec.dtype == BFLOAT16:
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)

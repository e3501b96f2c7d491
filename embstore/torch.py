"""The store in PyTorch: tensors and a Dataset. The one module that imports torch when it is imported."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from embstore.schema import BFLOAT16, FieldSpec

__all__ = ["as_tensor"]


def as_tensor(values: np.ndarray[Any, Any], spec: FieldSpec) -> torch.Tensor:
    """Show rows as a tensor without a copy; bits of bfloat16 as what they are."""
    if spec.dtype == BFLOAT16:
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)

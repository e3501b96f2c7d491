"""The dtype that a model computes in: float32, or one of half the size by PyTorch's autocast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from embstore.errors import ConfigError

if TYPE_CHECKING:
    from torch import device

COMPUTE_DTYPES: Final = ("float32", "bfloat16", "float16")


def check_compute_dtype(compute_dtype: str) -> None:
    """Raise ConfigError for a dtype that is not one of `COMPUTE_DTYPES`."""
    if compute_dtype not in COMPUTE_DTYPES:
        raise ConfigError("compute_dtype", compute_dtype, f"expected one of {', '.join(COMPUTE_DTYPES)}")


def autocast(device: str | device, compute_dtype: str) -> Any:
    """Return PyTorch's context of a compute dtype. "float32" also turns off an autocast that the caller is in."""
    import torch

    enabled = compute_dtype != "float32"
    return torch.autocast(torch.device(device).type, dtype=getattr(torch, compute_dtype), enabled=enabled)

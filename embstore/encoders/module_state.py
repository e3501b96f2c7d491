"""Digests of the tensors of a module, and a cheap check whether they changed."""

from __future__ import annotations

from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

_blake2b: Final = partial(blake2b, digest_size=16)


def digest_module(module: Module) -> str:
    """Return the digest of a module's state: names, dtypes, shapes and bits of its ``state_dict``, in order of names.

    The device of its tensors and their layout in memory do not matter. The digest does not cover the code, nor buffers
    that are not persistent.

    Returns
    -------
    str
        BLAKE2b-128, 32 hexadecimal digits.

    Raises
    ------
    TypeError
        A value of the state is not a plain tensor: it is quantized, sparse, without values, or of another class.
    """
    import torch

    total = _blake2b()
    for name, value in sorted(module.state_dict().items()):
        plain = type(value) in (torch.Tensor, torch.nn.Parameter) and value.layout == torch.strided
        if not plain or value.is_meta or value.is_quantized:
            found = value.layout if isinstance(value, torch.Tensor) else type(value).__name__
            raise TypeError(f"{name!r} can't be digested: expected a tensor with all its values, found {found}")
        total.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\n".encode())
        plainly = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        total.update(plainly.view(torch.uint8).numpy())
    return total.hexdigest()


class ModuleWeights:
    """The digest of a module's state, and a cheap check whether the state changed.

    Attributes
    ----------
    digest : str
        Result of `digest_module` when this object was created.
    """

    def __init__(self, module: Module) -> None:
        self._module = module
        self.digest = digest_module(module)
        self._look()

    def _look(self) -> None:
        self._seen = self._signs()
        # While these tensors are referenced, other weights can't get their memory and so the same address.
        self._held = [value.detach() for value in self._module.state_dict().values()]

    def _signs(self) -> list[tuple[Any, ...]] | None:
        """Return name, address, count of changes and layout of each tensor. None if PyTorch does not count changes."""
        state: dict[str, Tensor] = self._module.state_dict(keep_vars=True)
        if any(value.is_inference() for value in state.values()):
            return None
        return [
            (name, value.data_ptr(), value._version, value.dtype, value.shape, value.stride(), value.device)
            for name, value in state.items()
        ]

    def unchanged(self) -> bool:
        """Return whether the weights are those that were digested."""
        if self._seen is not None and self._seen == self._signs():
            return True
        if digest_module(self._module) != self.digest:
            return False
        self._look()
        return True

"""An encoder around any module of PyTorch: in evaluation mode, without gradients, with the weights that it had.

What a module's weights are, it can tell itself; what its code does only its author can: that is what `config` is for.
How weights are digested is `weights`', and what this has in common with functions `functions`'.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from embstore._engine.format.record import DEFAULT_FIELD, FieldSpec
from embstore.encoders.functions import FunctionEncoder
from embstore.encoders.precision import autocast, check_compute_dtype
from embstore.encoders.weights import ModuleWeights
from embstore.errors import ConfigError, WeightsChangedError

if TYPE_CHECKING:
    from torch import device
    from torch.nn import Module

_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")


class ModuleEncoder(FunctionEncoder):
    """An encoder around a module of PyTorch, in evaluation mode and without gradients.

    Its config says what the module is: `id`, the digest of its weights, that of its structure (which modules of
    which settings it is made of, as its `repr` shows), and `compute_dtype`. What its code, `collate`, `forward` and
    `decode` do is for the caller to say in `config`, where it is not always the same.

    The weights are those that the module has now. Before and after each batch its tensors are compared by address
    and by PyTorch's own count of changes, which takes microseconds; where these differ, the digest decides, so that
    a module may move to another device. What goes round that count is not seen: ``tensor.data.add_(1)`` and writing
    through a NumPy array, where ``with torch.no_grad(): tensor.add_(1)``, an optimizer's step, ``load_state_dict`` and
    ``tensor.data = other`` are. Make a new encoder of a module that has changed.

    Parameters
    ----------
    module : torch.nn.Module
        Its modes (`training`) are restored after each batch.
    collate : callable
        Takes a list of items; returns a tensor, or what else the module is called with: a mapping for
        ``module(**inputs)``, a tuple for ``module(*inputs)``. Tensors in it are moved to the module's device.
    config : mapping, optional
        What else the values depend on.
    fields : mapping of str to FieldSpec, optional
        What is kept of the outputs. Floats are cast to the declared dtype; a list of tensors is taken for a ragged
        field. If left out, the outputs are tensors, and the first rows decide.
    forward : callable, optional
        Takes the module and its inputs, in place of calling it; returns a tensor, or a mapping of names to tensors
        (as a ModelOutput of transformers is).
    decode, length : callable, optional
        As for `FunctionEncoder`.
    device : str or torch.device, optional
        Where the module is moved to, as ``module.to(device)`` does it; else it stays where it is.
    compute_dtype : {"float32", "bfloat16", "float16"}
        The latter two by autocast; "float32" is the dtype that the weights have, whatever autocast the caller is in.
    id : str, optional
        The module's name; else that of its class.

    Raises
    ------
    ConfigError
        `config` says what the module itself does, or holds what a config can't; or the device has no such autocast.
    TypeError
        The module's state is not made of plain tensors (see `digest_module`).
    """

    def __init__(
        self,
        module: Module,
        *,
        collate: Callable[[list[Any]], Any],
        config: Mapping[str, Any] | None = None,
        fields: Mapping[str, FieldSpec] | None = None,
        forward: Callable[[Module, Any], Any] | None = None,
        decode: Callable[[Any], Any] | None = None,
        length: Callable[[Any], int] | None = None,
        device: str | device | None = None,
        compute_dtype: str = "float32",
        id: str | None = None,
    ) -> None:
        if device is not None:
            module.to(device)
        _check_compute_dtype(_device_of(module), compute_dtype)
        self._weights = ModuleWeights(module)
        self._name = id or type(module).__qualname__
        own = {
            "encoder": {"id": self._name, "weights": self._weights.digest, "structure": _structure(module)},
            "compute_dtype": compute_dtype,
        }
        config = config or {}
        for name in own:
            if name in config:
                raise ConfigError(name, config[name], "the encoder says this itself")
        function = partial(_run, module, collate, forward or _call, compute_dtype)
        super().__init__(function, config={**own, **config}, fields=fields, decode=decode, length=length)
        self._module = module

    @property
    def provenance(self) -> Mapping[str, str]:
        """The device, and the version of torch."""
        import torch

        found = _device_of(self._module)
        device = torch.cuda.get_device_name(found) if found.type == "cuda" else str(found)
        return {"device": device, "torch": str(torch.__version__)}

    def encode(self, items: Sequence[Any]) -> dict[str, Any]:
        """Return rows on the CPU: for each field a tensor ``(len(items), *shape)``, or a list of tensors if ragged.

        A tensor of a module without declared fields is the field ``embedding``.

        Raises
        ------
        WeightsChangedError
            The module's weights are not those in the config.
        UnknownFieldError
            A declared field is not among the outputs.
        TypeError
            The outputs are not tensors.
        """
        self._check_weights()
        found = super().encode(items)
        self._check_weights()  # a module that writes to its own state is not frozen
        if not isinstance(found, Mapping):
            found = {DEFAULT_FIELD: found}
        return {name: self._on_cpu(name, value) for name, value in found.items()}

    def _check_weights(self) -> None:
        if not self._weights.unchanged():
            error = WeightsChangedError(Path(self._name))
            error.add_note("the module itself was changed: make a new ModuleEncoder of it")
            raise error

    def _on_cpu(self, name: str, value: Any) -> Any:
        import torch

        spec = (self._declared or {}).get(name)
        if spec is not None and spec.ragged and isinstance(value, list | tuple):
            return [self._on_cpu(name, row) for row in value]
        if not isinstance(value, torch.Tensor):
            raise TypeError(
                f"expected a tensor of the module for the field {name!r}, found {type(value).__name__}; "
                f"pass a function forward=, which takes the module and its inputs, and returns tensors"
            )
        dtype = value.dtype
        if spec is not None and spec.floating and value.is_floating_point():
            dtype = getattr(torch, spec.dtype)
        with torch.inference_mode():
            return value.to("cpu", dtype).contiguous()


def _run(module: Module, collate: Callable[..., Any], forward: Callable[..., Any], dtype: str, items: Any) -> Any:
    """Return the outputs of a module for a list of items, on the module's device."""
    import torch

    device = _device_of(module)
    with torch.inference_mode(), _evaluating(module), autocast(device, dtype):
        return forward(module, _moved(collate(items), device))


def _structure(module: Module) -> str:
    """Return the digest of which modules, with which settings, a module is made of: ReLU has no weights, nor GELU."""
    return blake2b(_ADDRESS.sub("", repr(module)).encode(), digest_size=16).hexdigest()


def _device_of(module: Module) -> device:
    """Return where a module takes its inputs."""
    import torch

    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")


def _check_compute_dtype(device: device, compute_dtype: str) -> None:
    """Refuse a dtype without autocast: PyTorch would compute in another one, with no more than a warning."""
    import torch

    check_compute_dtype(compute_dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with autocast(device, compute_dtype):
            enabled = torch.is_autocast_enabled(device.type)
    if not enabled and compute_dtype != "float32":
        raise ConfigError("compute_dtype", compute_dtype, f"expected a dtype that autocast has on {device.type}")


@contextlib.contextmanager
def _evaluating(module: Module) -> Iterator[None]:
    """Put a module into evaluation mode, and each of its parts back into its own mode."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _moved(inputs: Any, device: device) -> Any:
    if hasattr(inputs, "to"):  # tensors, packed sequences, the batches of transformers
        return inputs.to(device)
    if isinstance(inputs, Mapping):
        return {name: _moved(value, device) for name, value in inputs.items()}
    if isinstance(inputs, list | tuple):
        moved = [_moved(value, device) for value in inputs]
        return moved if isinstance(inputs, list) else tuple(moved)
    return inputs


def _call(module: Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return module(**inputs)
    return module(*inputs) if type(inputs) is tuple else module(inputs)  # a PackedSequence is a tuple too

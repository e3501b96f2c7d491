"""An encoder around any PyTorch module: in evaluation mode, without gradients, with unchanged weights.

The encoder digests the module itself, by `module_state`. Only the author knows the module's other settings: describe
them in `config`.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embstore._engine.format.arguments import function_of, mapping_of
from embstore._engine.format.record import DEFAULT_FIELD, FieldSpec
from embstore.encoders.functions import FunctionEncoder
from embstore.encoders.module_state import ModuleState
from embstore.encoders.precision import autocast, check_compute_dtype
from embstore.errors import ConfigError, WeightsChangedError

if TYPE_CHECKING:
    from torch import device
    from torch.nn import Module


class ModuleEncoder(FunctionEncoder):
    """An encoder around a PyTorch module, in evaluation mode and without gradients.

    Its config describes the module: `id`, the digest of its weights (parameters and buffers), the digest of its
    structure, and `compute_dtype`. The structure is all else that is in memory: the attributes of each submodule,
    hooks, and the source of `forward` with the methods, functions and globals that it reads. Code of installed
    packages counts by its name. Describe `collate` and `decode` in `config`, unless they never change.

    The module must stay as it is when the encoder is created. Before and after each batch, its tensors are compared by
    address and by PyTorch's own count of changes, and before it the attributes by identity. This takes 3 ms for BERT.
    If these differ, the digests decide, so a module may move to another device. Not detected are changes that PyTorch
    does not count (``tensor.data.add_(1)``, writing through a NumPy array), and changes inside an attribute's object.
    Attributes that a pass itself sets are not part of the module: a counter, or tensors that it keeps. Create a new
    encoder for a module that has changed.

    Parameters
    ----------
    module : torch.nn.Module
        The modes (`training`) of its parts are restored after each batch.
    collate : callable
        Takes a list of items. Returns the module's inputs: a tensor, a mapping for ``module(**inputs)``, or a tuple
        for ``module(*inputs)``. Tensors in them are moved to the module's device.
    config : mapping, optional
        All other settings that the values depend on.
    fields : mapping of str to FieldSpec, optional
        The outputs to keep. Floats are cast to the declared dtype. A ragged field takes a list of tensors. By
        default, the outputs are tensors, and the first rows decide.
    forward : callable, optional
        Takes the module and its inputs, and replaces the call of the module. Returns a tensor, or a mapping of names
        to tensors (such as a ModelOutput of transformers).
    pure : bool
        See `FunctionEncoder`. A module in training mode, or with noise, is not pure.
    decode, length : callable, optional
        As for `FunctionEncoder`.
    device : str or torch.device, optional
        The module is moved there by ``module.to(device)``. By default, it stays on its device.
    compute_dtype : {"float32", "bfloat16", "float16"}
        "bfloat16" and "float16" use autocast. "float32" computes in the dtype of the weights, and turns off an
        autocast of the caller.
    id : str, optional
        The module's name. Default: the name of its class.

    Raises
    ------
    ConfigError
        `config` sets a name that the encoder sets itself, or has values that a config can't hold. Or the device's
        autocast lacks the dtype.
    TypeError
        A value can't be digested: a tensor that is quantized, sparse or without values, or an object of TorchScript.
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
        pure: bool = False,
        device: str | device | None = None,
        compute_dtype: str = "float32",
        id: str | None = None,
    ) -> None:
        if not callable(getattr(module, "state_dict", None)) or isinstance(module, type):
            raise TypeError(f"expected a torch.nn.Module, found {module!r:.200}; wrap a function in FunctionEncoder")
        function_of("collate", collate)
        if forward is not None:
            function_of("forward", forward)
        if device is not None:
            module.to(device)
        _check_compute_dtype(_device_of(module), compute_dtype)
        self._state = ModuleState(module, forward)
        self._name = id or type(module).__qualname__
        own = {
            "encoder": {"id": self._name, "weights": self._state.weights, "structure": self._state.structure},
            "compute_dtype": compute_dtype,
        }
        config = mapping_of("config", config, "names to settings")
        for name in own:
            if name in config:
                raise ConfigError(name, config[name], "the encoder sets this name itself; leave it out")
        function = partial(_run, module, collate, forward or _call, compute_dtype)
        super().__init__(function, config={**own, **config}, fields=fields, decode=decode, length=length, pure=pure)
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

        If no fields are declared, a single output tensor becomes the field ``embedding``.

        Raises
        ------
        WeightsChangedError
            The module's weights are not those in the config.
        UnknownFieldError
            A declared field is not among the outputs.
        TypeError
            The outputs are not tensors.
        """
        self._check(self._state.unchanged())
        found = super().encode(items)
        self._check(self._state.weights_unchanged())  # a module may change its own state
        self._state.passed()
        if not isinstance(found, Mapping):
            found = {DEFAULT_FIELD: found}
        return {name: self._on_cpu(name, value) for name, value in found.items()}

    def _check(self, unchanged: bool) -> None:
        if not unchanged:
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


def _device_of(module: Module) -> device:
    """Return the device of a module's inputs."""
    import torch

    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")


def _check_compute_dtype(device: device, compute_dtype: str) -> None:
    """Raise ConfigError for a dtype that autocast lacks: PyTorch only warns, and computes in another dtype."""
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
    """Put a module into evaluation mode, and restore the mode of each part afterwards."""
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

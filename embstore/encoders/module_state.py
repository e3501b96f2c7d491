"""The digests of a module in memory, and a check whether it changed: its tensors, and all else that `forward` reads.

Modules of equal tensors may have another activation, another number of heads or a hook, and two classes of one name
may have another `forward`.
"""

from __future__ import annotations

import enum
import inspect
import operator
import re
import sys
import types
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from embstore.encoders.module_code import (
    ADDRESS,
    is_library,
    names_in,
    pickled,
    script_of,
    source_of,
    top_package,
    used_names,
)

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

_blake2b: Final = partial(blake2b, digest_size=16)

_DEVICE: Final = re.compile(r"(cpu|cuda|mps|xpu)(:\d+)?")
_PLAIN: Final = (int, float, complex, str, bytes, type(None), type(...))
_SKIPPED: Final = frozenset(
    (
        *("training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"),  # the tensors are digested
        *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),  # digested in their order
        *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks"),
        *("_is_full_backward_hook", "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks"),
        *("_load_state_dict_post_hooks", "_compiled_call_impl"),
        # facts of transformers about the place of the files, and its notes
        *("_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "_is_hf_initialized"),
        *("warnings_issued", "deprecation_warnings"),
    )
)
"""Attributes that no output in evaluation mode depends on, or that are read in another way."""

_WHOLE: Final = (
    *(list, tuple, set, frozenset, deque, partial, memoryview, staticmethod, classmethod, property, np.ndarray),
    *(types.MethodType, types.BuiltinFunctionType, weakref.ref),
)
"""Objects whose content is digested by their items."""

_NOT_CALLED: Final = ("__init__", "__new__", "__init_subclass__", "__repr__", "__str__")
"""Methods of objects that no pass calls."""

_SHORT: Final = 100
"""Most items of a list that are compared before each batch: a vocabulary has a million."""

_ENTRIES: Final = ("forward", "train", "eval", "__call__", "__getattr__", "__getattribute__", "__torch_function__")
"""Methods that are called from outside. The members of classes that they use are found by their names."""


# -- tensors ----------------------------------------------------------------------------------


def digest_module(module: Module) -> str:
    """Return the digest of a module's parameters and buffers: names, dtypes, shapes and bits, in order of names.

    Buffers that are not persistent count as well. The device of tensors and their layout in memory do not matter.

    Returns
    -------
    str
        BLAKE2b-128, 32 hexadecimal digits.

    Raises
    ------
    TypeError
        A value is not a plain tensor: it is quantized, sparse, without values, or of another class.
    """
    total = _blake2b()
    for name, value in sorted(_state(module)):
        total.update(f"{name}\0".encode() + _tensor_digest(name, value))
    return total.hexdigest()


def _state(module: Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers of a module, of both kinds, under all of their names."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _tensor_digest(name: str, value: Tensor) -> bytes:
    import torch

    plain = type(value) in (torch.Tensor, torch.nn.Parameter) and value.layout == torch.strided
    if not plain or value.is_meta or value.is_quantized:
        found = value.layout if type(value) in (torch.Tensor, torch.nn.Parameter) else type(value).__name__
        raise TypeError(f"{name!r} can't be digested: expected a tensor with all its values, found {found}")
    total = _blake2b(f"{value.dtype}\0{tuple(value.shape)}\n".encode())
    plainly = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    total.update(plainly.view(torch.uint8).numpy())  # type: ignore[arg-type]
    return total.digest()


def _sign(value: Tensor) -> tuple[Any, ...] | None:
    """Return address, count of changes and layout of a tensor. None if PyTorch does not count its changes."""
    if value.is_inference():
        return None
    return value.data_ptr(), value._version, value.dtype, value.shape, value.stride(), value.device


# -- all else ---------------------------------------------------------------------------------


class _Reader:
    """Digests of objects by their content. Objects are compared by content: equal copies have one digest.

    Parameters
    ----------
    module : Module
        Its parameters and buffers are left out, because `digest_module` digests them.
    forward : callable, optional
        Called in place of the module.
    """

    def __init__(self, module: Module, forward: Any) -> None:
        self._classes = {type(part) for part in module.modules()}
        self._used = used_names(self._classes, {*_ENTRIES, *names_in(forward)})
        self._state = {id(value) for _, value in _state(module)}
        self._inference = any(value.is_inference() for _, value in _state(module))
        self._known: dict[int, tuple[object, bytes]] = {}  # the object is held, so that its id stays its own

    def of(self, value: Any) -> bytes:
        """Return the digest of any object."""
        if isinstance(value, _PLAIN) and not isinstance(value, enum.Enum):
            is_device = isinstance(value, str) and _DEVICE.fullmatch(value)
            return b"device" if is_device else f"{type(value).__name__} {value!r}".encode("utf-8", "surrogatepass")
        if id(value) not in self._known:
            self._known[id(value)] = value, b"cycle"
            self._known[id(value)] = value, self._all(self._parts(value))
        return self._known[id(value)][1]

    def _all(self, parts: Iterable[Any]) -> bytes:
        total = _blake2b()
        for part in parts:
            found = part if isinstance(part, bytes) else self.of(part)
            total.update(len(found).to_bytes(8, "little") + found)
        return total.digest()

    def _parts(self, value: Any) -> Iterator[Any]:
        """Yield the parts of an object that it is known by: digests as bytes, and further objects."""
        import torch

        yield f"{type(value).__module__}.{type(value).__qualname__}"
        match value:
            case torch.Tensor():
                yield self._tensor(value)
            case torch.nn.Module():
                yield from self._module(value)
            case torch.ScriptObject():
                raise TypeError(f"{type(value).__name__} can't be digested: its content can't be read")
            case np.ndarray() if not value.dtype.hasobject:
                yield f"{value.dtype.str} {value.shape}"
                yield np.ascontiguousarray(value).tobytes()
            case enum.Enum():
                yield value.name
            case type():
                yield from self._class(value)
            case types.FunctionType():
                yield from self._function(value)
            case types.MethodType():
                yield value.__func__
                yield value.__self__
            case types.BuiltinFunctionType() | types.ModuleType():
                yield value.__name__
            case Mapping():
                for key, item in value.items():
                    yield key
                    yield item
            case set() | frozenset():
                yield from sorted(map(self.of, value))
            case list() | tuple() | deque() | np.ndarray():
                yield from value
            case staticmethod() | classmethod():
                yield value.__func__
            case property():
                yield value.fget
            case partial():
                yield from (value.func, value.args, value.keywords)
            case weakref.ref():
                yield value()
            case memoryview():
                yield value.tobytes()
            case torch.device():
                return  # as of tensors
            case _ if isinstance(value, torch.dtype) or top_package(type(value)) in sys.stdlib_module_names:
                yield ADDRESS.sub("", repr(value))
        if not isinstance(value, (type, types.FunctionType, types.ModuleType, torch.Tensor, torch.nn.Module)):
            yield type(value)
            state = object.__getstate__(value)
            for own in state if isinstance(state, tuple) else (state,):  # its slots come as a second mapping
                yield from self._attributes(own or {})
            for part in () if isinstance(value, _WHOLE) or type(value) is dict else pickled(value, state):
                yield from self._attributes(part) if isinstance(part, dict) else (part,)

    def _attributes(self, found: Mapping[str, Any]) -> Iterator[Any]:
        for name in sorted(name for name in found if isinstance(name, str) and name not in _SKIPPED):
            if not self._is_result(found[name]):
                yield name
                yield found[name]

    def _is_result(self, value: Any, depth: int = 4) -> bool:
        """Return whether a value is one that a pass keeps, such as a map of attention, or the place for such values.

        It is a result of the module, and no part of it: a module must not have another digest after a pass.
        """
        import torch

        if isinstance(value, torch.Tensor):
            kept = value.grad_fn is not None or (value.is_inference() and not self._inference)
            return kept and id(value) not in self._state
        if isinstance(value, list | tuple | dict | deque) and not hasattr(value, "default_factory"):
            items = value.values() if isinstance(value, dict) else value
            return depth > 0 and all(self._is_result(item, depth - 1) for item in items)
        return value is None

    def _tensor(self, value: Tensor) -> bytes:
        import torch

        if id(value) in self._state or self._is_result(value):
            return b"known"
        if value.layout != torch.strided:
            indices_and_values = value.__reduce_ex__(2)[1]  # type: ignore[no-untyped-call]
            return self._all(indices_and_values)
        plain = (value.dequantize() if value.is_quantized else value).as_subclass(torch.Tensor)
        return _tensor_digest("a tensor among the attributes", plain)

    def _module(self, module: Module) -> Iterator[Any]:
        import torch

        yield type(module)
        if isinstance(module, torch.jit.ScriptModule):
            yield from script_of(module)
        elif type(module).__name__ != "OptimizedModule":  # of torch.compile, with objects of the process
            yield from self._attributes(vars(module))
        if type(module).get_extra_state is not torch.nn.Module.get_extra_state:
            yield module.get_extra_state()
        for name, tensor in sorted((*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))):
            yield name
            yield tensor
        for name, part in module.named_children():
            yield name
            yield part
        for hooks, keywords in (
            (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
            (module._forward_hooks, module._forward_hooks_with_kwargs),
        ):
            for number, hook in hooks.items():
                yield number in keywords
                yield hook
            yield b"hooks"

    # -- code -----------------------------------------------------------------------------

    def _class(self, cls: type) -> Iterator[Any]:
        """Yield the name of a class. Of a user's class also the names of its bases, and the members that are used."""
        yield f"{cls.__module__}.{cls.__qualname__}"
        own = [part for part in cls.__mro__ if not is_library(part)]
        yield from (f"{part.__module__}.{part.__qualname__}" for part in (cls.__mro__ if own else ()))
        for part in own:
            for name in sorted(vars(part)):
                passive = name.startswith("__") and (name in _NOT_CALLED or not callable(vars(part)[name]))
                if name in self._used or (cls not in self._classes and not passive):
                    yield name
                    yield vars(part)[name]

    def _function(self, function: types.FunctionType) -> Iterator[Any]:
        """Yield the name of a function. Of a user's function also its source and the values that it reads."""
        yield f"{function.__module__}.{function.__qualname__}"
        if is_library(function):
            return
        yield from source_of(function)
        yield from (function.__defaults__, function.__kwdefaults__)
        for cell in function.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:
                yield b"empty"
        for name in sorted(names_in(function)):
            found = function.__globals__.get(name)
            if isinstance(found, (*_PLAIN, tuple, type, types.FunctionType)):
                yield name
                yield found


def digest_structure(module: Module, forward: Any = None) -> str:
    """Return the digest of all else that a module's outputs depend on, as far as it is in memory.

    These are its classes, the source of their `forward` and of the methods, functions and globals that it reads, its
    hooks, and each attribute of each submodule, with tensors and modules in lists. Code of installed packages counts
    by its name.

    Parameters
    ----------
    module : Module
    forward : callable, optional
        Called in place of the module, with the module and its inputs.

    Raises
    ------
    TypeError
        An attribute holds a tensor without values, or an object of TorchScript.
    """
    return _Reader(module, forward).of((module, forward)).hex()


def _objects(module: Module) -> list[Any]:
    """Return the classes, hooks and attributes of all submodules, with the items of short lists and dictionaries."""
    found: list[Any] = []
    for part in module.modules():
        found += (
            type(part),
            inspect.getattr_static(type(part), "forward"),
            *part._forward_pre_hooks.values(),
            *part._forward_hooks.values(),
        )
        for name, value in vars(part).items():
            if name not in _SKIPPED:
                found.append(value)
                if isinstance(value, list | tuple | dict) and len(value) <= _SHORT:
                    found += value.values() if isinstance(value, dict) else value
    return found


class ModuleState:
    """The digests of a module, and a check whether it changed.

    Attributes
    ----------
    weights, structure : str
        Results of `digest_module` and `digest_structure` when this object was created.
    """

    def __init__(self, module: Module, forward: Any) -> None:
        self._module, self._forward = module, forward
        self.weights = digest_module(module)
        self.structure = digest_structure(module, forward)
        self._look()
        self.passed()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the marks of this process. In another one the digests decide at the first pass."""
        return {**vars(self), "_seen": None, "_held": [], "_parts": []}

    def _look(self) -> None:
        self._seen = self._signs()
        # While these tensors are referenced, other weights can't get their memory and so the same address.
        self._held = [value.detach() for _, value in _state(self._module)]

    def _signs(self) -> list[tuple[Any, ...]] | None:
        """Return the signs of all tensors by name. None if PyTorch does not count changes of one of them."""
        signs = [(name, _sign(value)) for name, value in _state(self._module)]
        return None if any(sign is None for _, sign in signs) else signs

    def weights_unchanged(self) -> bool:
        """Return whether the tensors are those that were digested."""
        if self._seen is not None and self._seen == self._signs():
            return True
        if digest_module(self._module) != self.weights:
            return False
        self._look()
        return True

    def unchanged(self) -> bool:
        """Return whether nothing changed since the last pass. Attributes are compared by identity, in microseconds."""
        found = _objects(self._module)
        same = len(found) == len(self._parts) and all(map(operator.is_, found, self._parts))
        return (same or digest_structure(self._module, self._forward) == self.structure) and self.weights_unchanged()

    def passed(self) -> None:
        """Take note of the attributes that the module set itself in a pass, such as a counter or a map of attention."""
        self._parts = _objects(self._module)

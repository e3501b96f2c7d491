"""The code and the content of objects that a module's outputs depend on, in parts that `module_state` digests."""

from __future__ import annotations

import copyreg
import inspect
import re
import sys
import textwrap
import types
from collections.abc import Iterable, Iterator
from typing import Any, Final

ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")

_SCRIPT_NOTES: Final = re.compile(ADDRESS.pattern + r"| *#.*|training = \w+|___torch_mangle_\d+\.")
"""Notes of TorchScript on places in files and memory, and on the mode."""

_PICKLING: Final = ("__reduce_ex__", "__reduce__", "__getstate__")


def source_of(function: types.FunctionType) -> Iterator[Any]:
    """Yield the source of a function. Its compiled code if there is no source, or if several may stand in one line."""
    try:
        yield textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):  # typed in, or made from a string
        yield from _compiled(function.__code__)
    if function.__code__.co_name == "<lambda>":
        yield from _compiled(function.__code__)


def _compiled(code: types.CodeType) -> Iterator[Any]:
    """Yield the instructions of compiled code, with the names and constants that they number."""
    yield code.co_code
    yield code.co_names
    for constant in code.co_consts:
        yield from _compiled(constant) if isinstance(constant, types.CodeType) else (constant,)


def used_names(classes: Iterable[type], names: set[str]) -> set[str]:
    """Return the names of members of users' classes that code with these names can reach, through other members."""
    members = [vars(part) for cls in classes for part in cls.__mro__ if not is_library(part)]
    more = names.union(*(names_in(own[name]) for own in members for name in names & own.keys()))
    return names if more == names else used_names(classes, more)


def names_in(found: Any) -> set[str]:
    """Return the names of globals and attributes in a function's code, with those of the functions inside it.

    Texts in the code count as names, for ``getattr(self, "scale")``.
    """
    found = getattr(found, "fget", getattr(found, "__func__", found))
    code = found if isinstance(found, types.CodeType) else getattr(inspect.unwrap(found), "__code__", None)
    if code is None:
        return set()
    names = {*code.co_names, *(c for c in code.co_consts if isinstance(c, str))}
    return names.union(*(names_in(c) for c in code.co_consts if isinstance(c, types.CodeType)))


def top_package(found: Any) -> str:
    """Return the package of a class or function."""
    return str(found.__module__ or "").partition(".")[0]


def is_library(found: Any) -> bool:
    """Return whether a class or function comes with Python or an installed package. Versions are provenance."""
    top = top_package(found)
    path = getattr(sys.modules.get(str(found.__module__)), "__file__", None) or ""
    installed = "site-packages" in path or "dist-packages" in path or top in sys.stdlib_module_names
    return top in ("torch", "embstore") or (installed and top != "__main__")


def pickled(value: Any, state: Any) -> Iterator[Any]:
    """Yield the parts that an object is pickled as, if its class states them or the object has no attributes.

    An object of C has none, such as a number of NumPy.

    Parameters
    ----------
    value : object
    state : object
        Its attributes, as `object.__getstate__` returns them.
    """
    if state is not None and all(getattr(type(value), name) is getattr(object, name) for name in _PICKLING):
        return
    try:
        reduce: Any = copyreg.dispatch_table.get(type(value))
        found = value.__reduce_ex__(4) if reduce is None else reduce(value)
    except Exception:  # a lock, an open file: it has no content of its own
        return
    for part in found if isinstance(found, tuple) else (found,):
        yield list(part) if isinstance(part, Iterator) else part


def script_of(module: Any) -> Iterator[Any]:
    """Yield the code of a module of TorchScript, with its attributes and constants."""
    yield _SCRIPT_NOTES.sub("", module._c.dump_to_str(True, True, False))
    if "forward" in module._c._method_names():
        yield module.code_with_constants[1].const_mapping

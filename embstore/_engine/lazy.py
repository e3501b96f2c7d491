"""Lazy imports of names and libraries, which keep ``import embstore`` fast, and properties that are computed once."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class cached_property(Generic[T]):
    """A property that is computed at its first use, as `functools.cached_property` is, without its lock.

    That lock (Python 3.11) is one for all objects of a class. It stays locked in a process that is forked while another
    thread computes the property of any object.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> T:
        """Compute the value, and put it in place of this property."""
        if instance is None:
            return self  # type: ignore[return-value]
        value = vars(instance)[self._name] = self._compute(instance)
        return value


def lazily(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's ``__getattr__`` and ``__dir__`` (PEP 562).

    Assign them under ``if not TYPE_CHECKING``: type checkers accept any name of a module that has a ``__getattr__``.

    Parameters
    ----------
    package : str
        Name of the package.
    homes : mapping of str to str
        For each public name, the module in the package that defines it. "" stands for a module of that name.
    """

    def get(name: str) -> Any:
        """Import a public name's module when the name is first used."""
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if not homes[name]:
            return importlib.import_module(f"{package}.{name}")
        value = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    def listed() -> list[str]:
        """List the public names."""
        return sorted(sys.modules[package].__all__)

    return get, listed


def imported(name: str, extra: str, purpose: str) -> Any:
    """Import a library that comes with an extra.

    Parameters
    ----------
    name : str
        Name of the library's module.
    extra : str
        The extra of embstore that installs the library.
    purpose : str
        Reason for the import, such as "for this model".

    Raises
    ------
    MissingLibraryError
        The library is not installed. The message names the package to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        from embstore.errors import MissingLibraryError  # the package itself imports none of its modules

        raise MissingLibraryError(name.partition(".")[0], extra, purpose) from error

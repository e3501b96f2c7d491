"""Names and libraries that are imported when they are first used: importing a package costs next to nothing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazily(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's ``__getattr__`` and ``__dir__`` (PEP 562).

    Assign them under ``if not TYPE_CHECKING``: type checkers accept any name of a module that has a ``__getattr__``.

    Parameters
    ----------
    package : str
        Its name.
    homes : mapping of str to str
        The module in it that each public name is in; "" for a module of that name.
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
        The library's module.
    extra : str
        The extra of embstore's that installs it.
    purpose : str
        What it is needed for, as "for this model".

    Raises
    ------
    MissingLibraryError
        It is not installed; says what to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        from embstore.errors import MissingLibraryError  # the package itself imports none of its modules

        raise MissingLibraryError(name.partition(".")[0], extra, purpose) from error

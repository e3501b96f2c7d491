"""Pickles of public classes. They hold only public names, so pickles in files outlive a move of a module."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from typing import Any, Self


class _Name:
    """A public name. It is pickled as a name, and unpickled as the function or class of that name."""

    def __init__(self, place: str) -> None:
        self._place = place

    def __call__(self, *args: Any) -> Any:
        """Call the function, as `copy.copy` does."""
        return _embstore()._named(self._place)(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return _embstore()._named, (self._place,)


_name = cache(_Name)  # one object, so a pickle of 100,000 keys has their class once


def _embstore() -> Any:
    return sys.modules["embstore"]  # not imported: this module lies below the package's public names


@cache
def _public(cls: type, attribute: str = "") -> Callable[..., Any]:
    """Return the public name of a class or its attribute. Return a class without one, such as a user's subclass."""
    for package in ("embstore", ".".join(cls.__module__.split(".")[:2])):
        if getattr(sys.modules[package], cls.__name__, None) is cls:
            return _name(f"{package}:{cls.__name__}{attribute and '.'}{attribute}")
    found: Callable[..., Any] = getattr(cls, attribute) if attribute else cls
    return found


def by_name(what: str | type, *args: Any) -> tuple[Any, ...]:
    """Return the value for ``__reduce__`` that makes an object by a call of a public name.

    Parameters
    ----------
    what : str or type
        A name, such as "embstore:View._restored". Or the object's class, which is looked up by its own name in
        `embstore` or in its public subpackage.
    """
    return (_name(what) if isinstance(what, str) else _public(what)), args


class PickledByName:
    """Base of public dataclasses. They are pickled as their public name and the values of their fields."""

    __slots__ = ()

    @classmethod
    def _of(cls, values: Mapping[str, Any]) -> Self:
        return cls(**values)

    def __reduce__(self) -> tuple[Any, ...]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        cls: type = type(self)
        return _public(cls, "_of"), (values,)

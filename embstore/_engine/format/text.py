"""Text from callers as plain `str`. Pure."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def plain_text(value: T) -> T:
    """Return the characters of a text as a plain `str`, and any other value as it is.

    A subclass of `str` may format, compare or hash as another text than the one it holds. An Enum does:
    ``f"{Label.DOG}"`` is ``"Label.DOG"``, while its characters are ``"dog"``.
    """
    return str.__str__(value) if isinstance(value, str) else value  # type: ignore[return-value]

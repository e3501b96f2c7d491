"""Keys as others write them: the file name or the class first, with a suffix or bare. Pure."""

from __future__ import annotations

import re
from typing import Final

from embstore._engine.format.keys import MAX_KEY_BYTES, Key
from embstore.errors import KeyFormatError
from embstore.exchange.base import Named, Unreadable

__all__ = ["named"]

_MEDIA: Final = re.compile(
    r"\.(aac|aiff?|amr|au|avi|bmp|flac|gif|jpe?g|json|m4a|mkv|mov|mp3|mp4|mpe?g|npy|oga|ogg|opus|png|ppm|tiff?|txt"
    r"|wav|webm|webp|wma)$",
    re.IGNORECASE,
)
"""Suffixes of files that are encoded: of what else follows a dot (as in ``class v1.5``), nothing is known."""
_COLON: Final = re.compile(r":(?!//)")  # the colon of "s3://bucket" parts nothing


def named(found: object, class_name: object = None, *, default: str) -> Named:
    """Make a key of what a row is called.

    Parameters
    ----------
    found : object
        ``"file_id:class"``; ``"class:file name.wav"``, where what follows the first colon is a file's name or the
        class is the one given; or a bare file_id.
    class_name : object, optional
        The row's class, if it is told beside its name.
    default : str
        The class of bare names whose class is not told.

    Returns
    -------
    (object, Key), or Unreadable
        A name that two readings fit, and a class that is told twice in two ways, are none.

    Examples
    --------
    >>> [str(named(text, default="_")[1]) for text in ("v1:dog", "dog:v1.wav", "v1", "s3://b/v1.wav")]
    ['v1:dog', 'v1:dog', 'v1:_', 's3://b/v1.wav:_']
    >>> str(named("dog:v1", "dog", default="_")[1])
    'v1:dog'
    """
    if not isinstance(found, str):
        return Unreadable(found, f"expected text as its key, found {type(found).__name__}")
    if class_name is not None and not isinstance(class_name, str):
        return Unreadable(found, f"expected text as its class_name, found {type(class_name).__name__}")
    if class_name is None and found.count(":") == 1 and found.isascii() and len(found) <= MAX_KEY_BYTES:
        file_id, _, last = found.partition(":")  # as most keys are: a tenth of the time
        if file_id and last and "." not in last and not last.startswith("//"):
            return found, Key(file_id, last)
    try:
        return found, Key.parse(_key(found, class_name, default))
    except KeyFormatError as error:
        return Unreadable(found, error.reason)


def _key(found: str, class_name: str | None, default: str) -> Key:
    colons = [match.start() for match in _COLON.finditer(found)]
    if not colons:
        return Key(found, default if class_name is None else class_name)
    first, last = found[: colons[0]], found[colons[-1] + 1 :]
    class_first = Key(_MEDIA.sub("", found[colons[0] + 1 :]), first)
    class_last = Key(found[: colons[-1]], last)
    if class_name is None:
        return class_first if _MEDIA.search(last) else class_last
    if class_name == last:
        return class_last
    if class_name == first:
        return class_first
    raise KeyFormatError(found, f"its class_name is {class_name!r}, its key has another")

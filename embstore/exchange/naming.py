"""Keys as other programs write them: the file_id first or the class first, or a bare file_id. Pure."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Final

from embstore._engine.format.keys import MAX_KEY_BYTES, UNLABELLED, Key
from embstore.errors import FileFormatError, KeyFormatError
from embstore.exchange.file_contents import Unreadable
from embstore.exchange.import_options import ImportOptions

RowName = tuple[object, Key] | Unreadable
"""The name of a row in the file and its key, or the reason why it has no key."""

_COLON: Final = re.compile(r":(?!//)")  # the colon of "s3://bucket" separates no class


def row_name(found: object, class_name: object, options: ImportOptions, path: Path) -> RowName:
    r"""Return a row's name in the file and its key.

    Parameters
    ----------
    found : object
        The row's name.
    class_name : object
        The row's class, if the file states it beside the name, or None. It decides how the name is read.
    options : ImportOptions
        Its `keys` is the order of file_id and class in names. Its `class_name` is the class of names without one.
    path : Path
        Of the file, for the error.

    Returns
    -------
    (object, Key), or Unreadable
        Unreadable: the name makes no valid key, or contradicts `class_name`.

    Raises
    ------
    FileFormatError
        The name has a colon, no class is stated beside it, and `options` has no order: a guess could be a wrong label.

    Examples
    --------
    >>> def read(name, label=None, **options):
    ...     return str(row_name(name, label, ImportOptions(**options), Path("old.pt"))[1])
    >>> read("v1:dog", keys="file_id:class"), read("dog:v1", keys="class:file_id"), read("v1", class_name="dog")
    ('v1:dog', 'v1:dog', 'v1:dog')
    >>> read("dog:v1", "dog"), read("dog:v1.wav", keys="class:file_name"), read(r"C:\v1.wav", "dog", keys="file_id")
    ('v1:dog', 'v1:dog', 'C:\\v1.wav:dog')
    """
    if found is None:
        return Unreadable(found, "its key is missing")
    if class_name is not None and not isinstance(class_name, str):
        return Unreadable(found, f"expected text as its class_name, found {type(class_name).__name__}")
    if not isinstance(found, str) and not callable(options.keys):
        return Unreadable(found, f"expected text as its key, found {type(found).__name__}")
    if isinstance(found, str) and (usual := _usual_key(found, class_name, options)) is not None:
        return found, usual
    try:
        keys = _readings(found, class_name, options)
        if not keys:
            reason = f'its class_name is {class_name!r}, its key has another; keys="file_id" takes the whole key'
            return Unreadable(found, reason)
        if len(keys) > 1:
            raise FileFormatError(path, _unclear(found, keys))
        return found, Key.parse(keys[0])
    except KeyFormatError as error:
        return Unreadable(found, error.reason)


def _usual_key(found: str, class_name: str | None, options: ImportOptions) -> Key | None:
    """Return the key of a simple name whose order is known, as most are. 100,000 take 0.18 s, by `_readings` 0.57 s."""
    if options.keys == "file_id:class":
        file_id, _, last = found.rpartition(":")
    elif options.keys == "file_id" and class_name is not None:
        file_id, last = found, class_name
    else:
        return None
    simple = file_id and last and ":" not in last and last[:2] != "//" and (class_name is None or class_name == last)
    if simple and (file_id + last).isascii() and len(file_id) + len(last) < MAX_KEY_BYTES:
        return Key(file_id, last)
    return None


def _readings(found: object, class_name: str | None, options: ImportOptions) -> list[Key]:
    """Return the keys that a name can mean: several if nothing states the order, none if it contradicts its class."""
    order = options.keys
    given: list[Key] = []
    if callable(order):
        key = Key.parse(order(found))
        if class_name is None or key.class_name == class_name:
            return [key]
        if key.class_name == UNLABELLED:
            return [Key(key.file_id, class_name)]
        given.append(key)
    if not isinstance(found, str):
        return [key for key in given if key.class_name == class_name]
    colons = [match.start() for match in _COLON.finditer(found)]
    if order == "file_id" or not colons:
        file_id = posixpath.splitext(found)[0] if order == "class:file_name" else found
        return [Key(file_id, options.class_name if class_name is None else class_name)]
    last = Key(found[: colons[-1]], found[colons[-1] + 1 :])
    first = Key(found[colons[0] + 1 :], found[: colons[0]])
    if order == "class:file_name":
        first = Key(posixpath.splitext(first.file_id)[0], first.class_name)
    if order is None:
        given = list(dict.fromkeys([last, first]))
    elif not given:
        given = [last, first] if order == "file_id:class" else [first, last]
        if class_name is None:
            return given[:1]
    if class_name is not None:
        given = [key for key in (*given, last, first) if key.class_name == class_name]
        given = list(dict.fromkeys(given)) if order is None else given[:1]
    return given


def _unclear(found: object, keys: list[Key]) -> str:
    read = " or as ".join(f"the file_id {key.file_id!r} of class {key.class_name!r}" for key in keys)
    return (
        f"the name {found!r} can be read as {read}, or as a file_id without a class. State the order: "
        'keys="file_id:class", "class:file_id", "class:file_name" (the suffix is removed) or "file_id", '
        "or a function that returns the key of a name"
    )

"""Scalars beside embeddings become columns, and the metadata of a file becomes a config. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from embstore._engine.format.config import Config
from embstore._engine.format.record import check_name
from embstore._engine.read.dtypes import is_torch
from embstore._engine.write.check_input import column_values
from embstore.errors import ConfigError, DtypeError, NameRefusedError, ShapeError
from embstore.exchange.file_contents import Array, Unreadable

_MOST_VALUES: Final = 64
"""Most numbers of a tensor in a config: enough for class weights, too few for an embedding."""
_MAX_DEPTH: Final = 16


def plain(value: Any) -> Any:
    """Return single values of NumPy and torch as Python values, and others unchanged."""
    if isinstance(value, np.generic):
        return value.item()
    return value.item() if _is_array(value) and value.shape == () else value


def text_of(value: Any) -> Any:
    """Return a name or a class as text: whole numbers in digits, None for a missing one, others unchanged.

    pandas makes floats of whole numbers as soon as one of them is missing.

    Examples
    --------
    >>> [text_of(value) for value in ("dog", 3, 3.0, True, float("nan"), None, 0.5)]
    ['dog', '3', '3', 'True', None, None, 0.5]
    """
    if isinstance(value, float):
        value = None if value != value else int(value) if value.is_integer() else value
    return str(value) if isinstance(value, bool | int) else value


def _is_array(value: Any) -> bool:
    """Return True for an array, or a dense tensor in memory."""
    if isinstance(value, np.ndarray):
        return True
    return is_torch(value) and hasattr(value, "layout") and value.device.type == "cpu" and not value.is_nested


def column_of(name: object, values: Sequence[Any]) -> Array | list[str] | Unreadable:
    """Return values, of which None is a missing one, as a column.

    A missing text becomes empty, a missing float NaN. Integers and booleans have no such value: none may be missing.

    Returns
    -------
    ndarray, (n,), or list of str, or Unreadable if the values make no column

    Examples
    --------
    >>> column_of("score", [1, None, 0.5, 2.0]), column_of("split", ["train", None])
    (array([1. , nan, 0.5, 2. ]), ['train', ''])
    >>> print(column_of("mixed", ["a", 1]))
    mixed: its values are of different types: int and str
    """
    found = [plain(value) for value in values]
    there = [value for value in found if value is not None]
    kinds = sorted({type(value).__name__ for value in there})
    reason = ""
    if not there or 2 * len(there) < len(found):
        reason = f"{len(there)} of {len(found)} entries have it"
    elif kinds not in (["str"], ["float"], ["float", "int"], ["int"], ["bool"]):
        several = f"its values are of different types: {' and '.join(kinds)}"
        reason = several if len(kinds) > 1 else f"expected text or a number, found {kinds[0]}"
    elif kinds in (["int"], ["bool"]) and len(there) < len(found):
        reason = f"{len(found) - len(there)} of {len(found)} entries do not have it"
    if reason:
        return Unreadable(name, reason)
    fill = "" if kinds == ["str"] else math.nan
    try:
        given = [fill if value is None else value for value in found]
        dtype, column = column_values(check_name(name), None, given, len(given))
    except NameRefusedError as error:
        return Unreadable(name, error.reason)
    except (DtypeError, ShapeError) as error:
        return Unreadable(name, f"expected {error.expected}, found {error.found}")
    if kinds == ["int"] and dtype.startswith("float"):
        return Unreadable(name, "a whole number is too large")
    made: Array | list[str] = column
    return made


def config_of(metadata: Mapping[Any, Any]) -> tuple[Config, list[Unreadable]]:
    """Return the metadata of a file as a config, and the attributes that a config can't hold.

    Names become text. Dtypes, devices and sizes of torch become JSON values.

    Examples
    --------
    >>> config, left_out = config_of({"model": "ast", 5: (1, 2), "mean": np.float32(0.5), "raw": b"ab"})
    >>> config, [str(one) for one in left_out]
    (Config(model='ast', 5=[1, 2], mean=0.5), ['raw: expected a JSON value, found bytes'])
    """
    kept: dict[str, Any] = {}
    left_out: list[Unreadable] = []
    for found, value in metadata.items():
        name = found if isinstance(found, str) else str(found)
        if name in kept:
            left_out.append(Unreadable(found, "another attribute has this name"))
            continue
        try:
            kept[name] = Config({name: _json(value)})[name]
        except ConfigError as error:
            left_out.append(Unreadable(error.attribute or name, error.reason))
    return Config(kept), left_out


def _json(value: Any, depth: int = 0) -> Any:
    """Return a value as JSON, if there is only one way to write it."""
    value = plain(value)
    if depth > _MAX_DEPTH:
        return value
    if type(value).__module__ == "torch" and type(value).__name__ in ("dtype", "device"):
        return str(value).removeprefix("torch.")
    if _is_array(value):
        return value.tolist() if len(value.shape) == 1 and value.shape[0] <= _MOST_VALUES else value
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, Mapping):
        names = [name if isinstance(name, str) else str(name) for name in value]
        if len(set(names)) == len(names):
            return {name: _json(one, depth + 1) for name, one in zip(names, value.values(), strict=True)}
        return value
    if isinstance(value, set | frozenset):
        return sorted((_json(one, depth + 1) for one in value), key=repr)
    if isinstance(value, list | tuple):
        return [_json(one, depth + 1) for one in value]
    return value

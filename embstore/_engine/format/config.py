"""Config: all settings that the stored values depend on, as a frozen JSON mapping with a fingerprint. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from decimal import Decimal
from hashlib import blake2b
from typing import Any, Final

from embstore._engine.format.text import plain_text
from embstore._engine.lazy import cached_property
from embstore._engine.notebook import html_table
from embstore._engine.pickles import PickledByName, by_name
from embstore.errors import ConfigError

_MAX_EXACT_INT = 2**53
_MAX_DEPTH = 32
_MOST_SHOWN: Final = 80
_HEX: Final = frozenset("0123456789abcdef")


class _Absent:
    def __repr__(self) -> str:
        return "(absent)"

    def __reduce__(self) -> tuple[Any, ...]:
        return by_name("embstore:Difference._absent")


ABSENT: Final = _Absent()
"""The value in a `Difference` where one side lacks the attribute."""


@dataclass(frozen=True, slots=True)
class Difference(PickledByName):
    """One attribute that differs between two configs. Nested attributes are named ``outer.inner``."""

    name: str
    expected: Any
    found: Any

    def __str__(self) -> str:
        return f"{self.name}: expected {self.expected!r}, found {self.found!r}"

    @staticmethod
    def _absent() -> _Absent:
        return ABSENT


def _number(value: float) -> str:
    """Write a double as ECMAScript's Number::toString does (RFC 8785, 3.2.2.3)."""
    if value == 0:
        return "0"  # also -0.0
    shortest = repr(value)  # the same digits as ECMAScript's
    if 1e-6 <= abs(value) < 1e21:
        text = f"{Decimal(shortest):f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, _, exponent = shortest.partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent):+d}"


def canonical_json(value: Any) -> str:
    """Write a JSON value in its canonical form (RFC 8785, JCS).

    Examples
    --------
    >>> canonical_json({"b": 5.0, "a": [1e21, True, None, "é"]})
    '{"a":[1e+21,true,null,"é"],"b":5}'
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int | float):
        return _number(float(value))
    if isinstance(value, Mapping):
        # Names sort by their UTF-16 code units (3.2.3), which is not the order of code points.
        names = sorted(value, key=lambda name: name.encode("utf-16-be"))
        return "{" + ",".join(f"{canonical_json(n)}:{canonical_json(value[n])}" for n in names) + "}"
    return "[" + ",".join(map(canonical_json, value)) + "]"


def _plain(value: Any, name: str, depth: int = 0) -> Any:
    """Turn `value` into plain JSON, or raise ConfigError with the name of the attribute."""
    if depth > _MAX_DEPTH:
        raise ConfigError(name, type(value).__name__, f"nested more than {_MAX_DEPTH} deep")
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        value = value.item()  # NumPy's scalars
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(name, value, "expected valid Unicode text") from error
        return plain_text(value)
    if isinstance(value, int):
        if abs(value) > _MAX_EXACT_INT:
            raise ConfigError(name, value, "an integer beyond 2**53 is not exact in JSON")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(name, value, "expected a finite number")
        return int(value) if value.is_integer() and abs(value) <= _MAX_EXACT_INT else float(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(name, key, "expected text as the name of an attribute")
            _plain(key, name)
        prefix = f"{name}." if name else ""
        items = ((plain_text(k), v) for k, v in value.items())
        return _no_duplicates([(k, _plain(v, prefix + k, depth + 1)) for k, v in items])
    if isinstance(value, list | tuple):
        return [_plain(v, f"{name}[{i}]", depth + 1) for i, v in enumerate(value)]
    raise ConfigError(name, value, f"expected a JSON value, found {type(value).__name__}")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ConfigError(twice, result, "the same name occurs twice")
    return result


class Config(Mapping[str, Any]):
    """A frozen mapping of JSON values. Two configs are equal if their canonical forms are.

    Numbers are compared as in JSON: ``5`` is ``5.0``, and ``True`` is not ``1``. NumPy scalars become
    numbers and tuples become lists. NaN, infinity, names that are not text and integers beyond
    2**53 are refused.

    Parameters
    ----------
    values : mapping, optional
    **attributes
        Further attributes.

    Raises
    ------
    ConfigError
        With `attribute`, `value` and `reason`.

    Examples
    --------
    >>> a = Config(encoder="MIT/ast", sample_rate=16_000, duration=5)
    >>> b = Config({"duration": 5.0, "sample_rate": 16_000, "encoder": "MIT/ast"})
    >>> a == b, a.fingerprint == b.fingerprint
    (True, True)
    >>> print(*a.diff(Config(b, duration=10)))
    duration: expected 5, found 10
    """

    def __init__(self, values: Mapping[str, Any] | None = None, /, **attributes: Any) -> None:
        if not isinstance(values, Mapping | None):
            raise ConfigError("", values, "expected a mapping of attributes")
        merged = {**(values or {}), **attributes}
        self._values: dict[str, Any] = _plain(merged, "")

    @classmethod
    def from_json(cls, text: str) -> Config:
        """Parse JSON text. A name that occurs twice is refused."""
        values = json.loads(text, object_pairs_hook=_no_duplicates, parse_int=_whole_number)
        if not isinstance(values, dict):
            raise ConfigError("", values, "expected a JSON object")
        return cls(values)

    def __getitem__(self, name: str) -> Any:
        """Return a copy of the attribute, so that the config can't be changed."""
        return deepcopy(self._values[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @cached_property
    def canonical(self) -> str:
        """The config as RFC 8785 canonical JSON."""
        return canonical_json(self._values)

    @cached_property
    def fingerprint(self) -> str:
        """BLAKE2b-256 of the canonical JSON, 64 hexadecimal digits."""
        return blake2b(self.canonical.encode(), digest_size=32).hexdigest()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Config):
            return self.canonical == other.canonical
        if not isinstance(other, Mapping):
            return NotImplemented
        try:
            return self.canonical == Config(other).canonical
        except ConfigError:
            return False

    def __hash__(self) -> int:
        return hash(self.canonical)

    def diff(self, other: Mapping[str, Any]) -> tuple[Difference, ...]:
        """List the attributes in which `other` (found) differs from this config (expected)."""
        other = other if isinstance(other, Config) else Config(other)
        return tuple(_differences(self._values, other._values, ""))

    def to_dict(self) -> dict[str, Any]:
        """Return a plain copy."""
        return deepcopy(self._values)

    def __reduce__(self) -> tuple[Any, ...]:
        return by_name(type(self), self._values)

    def __repr__(self) -> str:
        inside = ", ".join(f"{k}={v!r}" for k, v in self._values.items())
        return f"Config({inside})"

    def _repr_html_(self) -> str:
        rows = [(name, json.dumps(value, ensure_ascii=False)) for name, value in self._values.items()]
        return html_table(rows, caption=f"Config {self.fingerprint[:16]}")


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the attributes of a config by dotted name, as `Config.diff` names them."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        nested = isinstance(value, Mapping) and bool(value)
        found.update(flattened(value, f"{prefix}{name}.") if nested else {prefix + name: value})
    return found


def shown(value: Any) -> str:
    """Return the value of an attribute as short text. A digest is shown by its first digits."""
    if isinstance(value, str) and len(value) >= 32 and _HEX.issuperset(value):
        return f"{value[:8]}…"
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 1] + "…"


def as_words(attributes: Mapping[str, Any]) -> str:
    """Return attributes as text, such as ``dataset='pets', preprocessing.duration=5``."""
    return ", ".join(f"{name}={shown(value)}" for name, value in attributes.items())


def _whole_number(text: str) -> int | float:
    """Parse an integer of JSON. Canonical JSON writes doubles beyond 2**53 as integers: return those as floats."""
    number = int(text)
    if _MAX_EXACT_INT < abs(number) < 10**21 and canonical_json(float(number)) == text:
        return float(number)
    return number


def _differences(expected: dict[str, Any], found: dict[str, Any], prefix: str) -> Iterator[Difference]:
    for name in {**expected, **found}:
        a, b = expected.get(name, ABSENT), found.get(name, ABSENT)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(a, b, f"{prefix}{name}.")
        elif (a is ABSENT or b is ABSENT) or canonical_json(a) != canonical_json(b):
            yield Difference(prefix + name, deepcopy(a), deepcopy(b))

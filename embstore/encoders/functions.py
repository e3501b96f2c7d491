"""Encoders around what `from_pretrained` does not know: any function of a list of items.

What a function does only its author can tell: that is what `config` is for. Modules of PyTorch, whose weights can be
digested, are `modules`'.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from embstore._engine.format.config import Config
from embstore._engine.format.record import FieldSpec, check_name
from embstore.encoders.base import BaseEncoder
from embstore.errors import ConfigError, UnknownFieldError


class FunctionEncoder(BaseEncoder):
    """An encoder around a function.

    Parameters
    ----------
    function : callable
        Takes a list of items; returns rows ``(len(items), *shape)``, a list of arrays for a ragged field, or a
        mapping of field names to these.
    config : mapping
        All that its values depend on: what it computes, with which weights, settings and version. Change it when
        the function changes, or rows of the old one go on being served.
    fields : mapping of str to FieldSpec, optional
        What it returns. If left out, the first rows decide.
    decode : callable, optional
        Turns a sample's content into an item, in threads. If left out, the content is the item.
    length : callable, optional
        Says how long an item is, where the function pads.
    provenance : mapping of str to str, optional
        What is worth knowing and decides nothing, such as versions.

    Raises
    ------
    ConfigError
        The config is empty or has values that a config can't hold, or the mapping of fields is empty.
    NameRefusedError
        A name is not a name for a field.
    TypeError
        A value of `fields` is not a FieldSpec.

    Examples
    --------
    >>> import numpy as np
    >>> def sizes(items):
    ...     return np.array([[len(item)] for item in items], np.float32)
    >>> encoder = FunctionEncoder(sizes, config={"encoder": "size in bytes", "version": 1})
    >>> encoder.encode([b"bark", b"meow!"]).tolist()
    [[4.0], [5.0]]
    """

    def __init__(
        self,
        function: Callable[[list[Any]], Any],
        *,
        config: Mapping[str, Any],
        fields: Mapping[str, FieldSpec] | None = None,
        decode: Callable[[Any], Any] | None = None,
        length: Callable[[Any], int] | None = None,
        provenance: Mapping[str, str] | None = None,
    ) -> None:
        if not config:
            raise ConfigError("", {}, "expected all settings that the function's values depend on")
        if fields is not None and not fields:
            raise ConfigError("fields", dict(fields), "expected at least one field, or None")
        for name, spec in (fields or {}).items():
            check_name(name)
            if not isinstance(spec, FieldSpec):
                raise TypeError(f"expected a FieldSpec for the field {name!r}, found {type(spec).__name__}")
        self._function = function
        self._config = Config(config)
        self._declared = None if fields is None else dict(fields)
        self._wanted = tuple(fields or ())
        self._decode = decode
        self._length = length
        self._provenance = dict(provenance or {})

    @property
    def config(self) -> Config:
        """All that the values depend on but the choice of fields."""
        return self._config

    @property
    def fields(self) -> Mapping[str, FieldSpec] | None:
        """What `encode` returns, by name; None, where none were declared, and the first rows are to decide."""
        return None if self._declared is None else {name: self._declared[name] for name in self._wanted}

    def with_fields(self, names: Sequence[str]) -> Self:
        """Return an encoder of some of the declared fields, around the same function or module.

        Raises
        ------
        UnknownFieldError
            One was not declared.
        """
        for name in names:
            if name not in (self._declared or {}):
                raise UnknownFieldError(name, self._declared or {}, path=None)
        narrowed = copy.copy(self)
        narrowed._wanted = tuple(dict.fromkeys(names))
        return narrowed

    def decode(self, content: Any) -> Any:
        """Turn a sample's content into an item, by the function given; else the content is the item."""
        return content if self._decode is None else self._decode(content)

    def length(self, item: Any) -> int:
        """Return how long an item is, by the function given; else 0 for all."""
        return 0 if self._length is None else self._length(item)

    @property
    def provenance(self) -> Mapping[str, str]:
        """What was given as such."""
        return self._provenance

    def encode(self, items: Sequence[Any]) -> Any:
        """Return what the function returns for the items; of declared fields, those that are wanted.

        Raises
        ------
        UnknownFieldError
            It did not return one of them.
        TypeError
            Several fields are declared, and it returned rows without a name.
        """
        return self._named(self._function(list(items)))

    def _named(self, found: Any) -> Any:
        """Return the wanted fields of what was returned, if fields were declared."""
        if self._declared is None:
            return found
        if isinstance(found, Mapping):
            for name in self._wanted:
                if name not in found:
                    raise UnknownFieldError(name, found, path=None)
            return {name: found[name] for name in self._wanted}
        if len(self._declared) > 1:
            raise TypeError(f"expected a mapping with {', '.join(self._declared)}, found {type(found).__name__}")
        return dict.fromkeys(self._wanted, found)

"""An encoder around any function of a list of items, for models that `from_pretrained` does not know.

Only the author knows the function's code: describe it in `config`. `modules` has the encoder for PyTorch modules, whose
weights can be digested.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from embstore._engine.format.arguments import function_of, mapping_of
from embstore._engine.format.config import Config
from embstore._engine.format.record import FieldSpec, check_name
from embstore.encoders.base import BaseEncoder
from embstore.errors import ConfigError, UnknownFieldError


class FunctionEncoder(BaseEncoder):
    """An encoder around a function.

    Parameters
    ----------
    function : callable
        Takes a list of items. Returns rows ``(len(items), *shape)``, a list of arrays for a ragged field, or a
        mapping of field names to these.
    config : mapping
        All settings that the values depend on: the computation, its weights, settings and version. Change it when
        the function changes. Otherwise, rows of the old function are served.
    fields : mapping of str to FieldSpec, optional
        The fields that it returns. By default, the first rows decide.
    decode : callable, optional
        Decodes a sample's content to an item, in threads. By default, the content is the item.
    length : callable, optional
        Returns the length of an item, if the function pads.
    pure : bool
        Whether a row depends on the content of its sample alone, not on other samples, chance or time. Samples with
        equal content are then encoded once.
    provenance : mapping of str to str, optional
        Facts that the values must not depend on, such as versions.

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
        pure: bool = False,
        provenance: Mapping[str, str] | None = None,
    ) -> None:
        config = mapping_of("config", config, "names to settings")
        if not config:
            raise ConfigError("", {}, "expected all settings that the function's values depend on")
        declared = None if fields is None else mapping_of("fields", fields, "names to FieldSpec")
        if declared is not None and not declared:
            raise ConfigError("fields", {}, "expected at least one field, or None")
        for name, spec in (declared or {}).items():
            check_name(name)
            if not isinstance(spec, FieldSpec):
                raise TypeError(f"expected a FieldSpec for the field {name!r}, found {type(spec).__name__}")
        self._function = function_of("function", function)
        self._config = Config(config)
        self._declared = declared
        self._wanted = tuple(declared or ())
        self._decode = None if decode is None else function_of("decode", decode)
        self._length = None if length is None else function_of("length", length)
        self._pure = pure
        self._provenance = dict(mapping_of("provenance", provenance, "names to facts"))

    @property
    def config(self) -> Config:
        """All settings that the values depend on, except the choice of fields."""
        return self._config

    @property
    def fields(self) -> Mapping[str, FieldSpec] | None:
        """The fields that `encode` returns, by name. None if no fields were declared, and the first rows decide."""
        return None if self._declared is None else {name: self._declared[name] for name in self._wanted}

    @property
    def in_memory(self) -> bool:
        """True: the function is in memory, and its code or a value that it reads can change."""
        return True

    @property
    def pure(self) -> bool:
        """Whether a row depends on the content of its sample alone, as the caller said."""
        return self._pure

    def with_fields(self, names: Sequence[str]) -> Self:
        """Return an encoder of some of the declared fields, around the same function or module.

        Raises
        ------
        UnknownFieldError
            A field was not declared.
        """
        for name in names:
            if name not in (self._declared or {}):
                raise UnknownFieldError(name, self._declared or {}, path=None)
        narrowed = copy.copy(self)
        narrowed._wanted = tuple(names)
        return narrowed

    def decode(self, content: Any) -> Any:
        """Decode a sample's content to an item by the given function. Without one, the content is the item."""
        return content if self._decode is None else self._decode(content)

    def length(self, item: Any) -> int:
        """Return the length of an item by the given function. Without one, return 0."""
        return 0 if self._length is None else self._length(item)

    @property
    def provenance(self) -> Mapping[str, str]:
        """The facts that the caller gave, such as versions."""
        return self._provenance

    def encode(self, items: Sequence[Any]) -> Any:
        """Return the function's result for the items. If fields were declared, return only the wanted ones.

        Raises
        ------
        UnknownFieldError
            The function did not return a declared field.
        TypeError
            Several fields are declared, and the function returned rows without a name.
        """
        return self._named(self._function(list(items)))

    def _named(self, found: Any) -> Any:
        """Return the wanted fields of the function's result, if fields were declared."""
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

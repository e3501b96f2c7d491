"""Metadata of an export as JSON: config, fields and columns of the store. Pure."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from embstore._engine.format.config import Config
from embstore._engine.format.record import COLUMN_DTYPES, FieldSpec, check_name
from embstore.errors import FileFormatError

ENTRY: Final = "embstore"
"""Name of the metadata in a file."""
KeyOrder = Literal["file_id:class", "class:file_id", "class:file_name", "file_id"]
"""Order of file_id and class in names. The suffix of a file_name is not part of the file_id."""
_DEFAULTS: Final = FieldSpec(shape=())


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreMetadata:
    """Config, fields and columns of the rows in a file.

    Attributes
    ----------
    config : Config
    fields : dict of str to FieldSpec
    columns : dict of str to str
        Their dtypes.
    per_key : str or None
        In a file with one array a row, the order of file_id and class in their names.
    """

    config: Config
    fields: dict[str, FieldSpec]
    columns: dict[str, str]
    per_key: KeyOrder | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the metadata as JSON values. A field has its shape, its dtype and its parts that are not default."""
        return {
            "config": self.config.to_dict(),
            "fields": {name: _described(spec) for name, spec in self.fields.items()},
            "columns": self.columns,
            **({} if self.per_key is None else {"per_key": self.per_key}),
        }

    def to_json(self) -> str:
        """Return the metadata as ASCII text."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def parse(cls, found: Any, path: Path) -> StoreMetadata:
        """Check the metadata of the file at `path`: JSON text, or its value.

        Raises
        ------
        FileFormatError
        """
        fields: dict[str, FieldSpec] = {}
        columns: dict[str, str] = {}
        try:
            found = json.loads(found) if isinstance(found, str) else found
            for name, parts in found["fields"].items():
                fields[check_name(name, fields)] = FieldSpec(**parts)
            for name, dtype in found["columns"].items():
                if dtype not in COLUMN_DTYPES:
                    raise ValueError(f"a column of {dtype!r}")
                columns[check_name(name, {**fields, **columns})] = dtype
            per_key = found.get("per_key")
            if per_key is not None and (per_key not in get_args(KeyOrder) or len(fields) != 1 or columns):
                raise ValueError(f"{len(fields)} fields and {len(columns)} columns with arrays named by {per_key!r}")
            config = found["config"]
            if not isinstance(config, dict):
                raise TypeError(f"a config of {type(config).__name__}")
            return cls(config=Config(config), fields=fields, columns=columns, per_key=per_key)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            reason = f"its metadata {ENTRY!r} is broken: {type(error).__name__}: {error}"
            raise FileFormatError(path, reason) from error


def _described(spec: FieldSpec) -> dict[str, Any]:
    parts = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    kept = {name: value for name, value in parts.items() if value != getattr(_DEFAULTS, name)}
    return {**kept, "shape": list(spec.shape), "dtype": spec.dtype}

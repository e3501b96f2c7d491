"""The manifest: what embstore writes beside the arrays of a file, so that they come back as what they were. Pure.

One JSON document: config, fields, columns, number of rows, and a CRC-32C of each array, which few of the formats have
themselves. Its own checksum tells it from one with a flipped bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from embstore._engine.format.config import Config, canonical_json
from embstore._engine.format.record import COLUMN_DTYPES, FieldSpec, SchemaError, check_name
from embstore.errors import ConfigError, FileFormatError, NameRefusedError, UnsupportedFormatError

__all__ = ["Manifest"]

_VERSION: Final = 1
_MOST_ROWS: Final = 2**48
_PARTS: Final = ("name", "shape", "dtype", "layer", "pooling", "nonfinite", "dims", "ragged")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a file's arrays are.

    Attributes
    ----------
    config : Config
    fields : dict of str to FieldSpec
    columns : dict of str to str
        Their dtypes.
    rows : int
    crc32c : dict of str to int
        Of each array's values in their order: numbers in little-endian bytes, texts as ``vlen-utf8`` has them (each a
        uint32 length and its UTF-8), lengths of ragged rows under ``<field>_offsets``. Empty: not known.
    """

    config: Config
    fields: dict[str, FieldSpec]
    columns: dict[str, str]
    rows: int
    crc32c: Mapping[str, int]

    def to_json(self) -> str:
        """Write the document; its length does not depend on the checksums."""
        document = {
            "embstore": _VERSION,
            # As text: as a document of its own it is read back by the rules of configs.
            "config": self.config.canonical,
            "fields": [
                {part: name if part == "name" else getattr(spec, part) for part in _PARTS}
                for name, spec in self.fields.items()
            ],
            "columns": [{"name": name, "dtype": dtype} for name, dtype in self.columns.items()],
            "rows": self.rows,
            "crc32c": {name: f"{value:08x}" for name, value in self.crc32c.items()},
        }
        return canonical_json(document | {"checksum": _digest(document)})

    @classmethod
    def from_json(cls, text: str, path: Path) -> Manifest:
        """Parse the document of the file at `path`; nothing in it is believed unchecked.

        Raises
        ------
        FileFormatError, UnsupportedFormatError
        """
        try:
            document = json.loads(text)
            checksum = document.pop("checksum")
            version = document["embstore"]
            if isinstance(version, int) and version > _VERSION:
                raise UnsupportedFormatError(path, expected=f"manifest {_VERSION}", found=f"manifest {version}")
            if checksum != _digest(document):
                raise FileFormatError(path, "its manifest's checksum does not match")
            return cls._parsed(document)
        except (ConfigError, NameRefusedError, SchemaError) as error:
            raise FileFormatError(path, f"its manifest is broken: {error}") from error
        except (FileFormatError, UnsupportedFormatError):
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise FileFormatError(path, f"its manifest is broken: {type(error).__name__}: {error}") from error

    @classmethod
    def _parsed(cls, document: Mapping[str, Any]) -> Manifest:
        fields: dict[str, FieldSpec] = {}
        columns: dict[str, str] = {}
        for found in document["fields"]:
            parts = dict(found)
            name = check_name(parts.pop("name"), fields)
            fields[name] = FieldSpec(**parts)
        for found in document["columns"]:
            name = check_name(found["name"], {**fields, **columns})
            if found["dtype"] not in COLUMN_DTYPES:
                raise ValueError(f"a column of {found['dtype']!r}")
            columns[name] = found["dtype"]
        rows = document["rows"]
        if not isinstance(rows, int) or isinstance(rows, bool) or not 0 <= rows <= _MOST_ROWS:
            raise ValueError(f"{rows!r} rows")
        crc32c = {str(name): int(value, 16) for name, value in document["crc32c"].items()}
        config = Config.from_json(document["config"])
        return cls(config=config, fields=fields, columns=columns, rows=rows, crc32c=crc32c)


def _digest(document: Mapping[str, Any]) -> str:
    return blake2b(canonical_json(document).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

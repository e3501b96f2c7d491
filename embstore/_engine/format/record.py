"""The vocabulary of the commit record as data, transcribed from `docs/format.md`. Pure.

`Record.to_json` writes a record, and `parse_record` reads one. `zarr_layout` has the files of arrays.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np

from embstore._engine.format.arguments import mapping_of
from embstore._engine.format.text import plain_text
from embstore._engine.pickles import PickledByName
from embstore.errors import ConfigError, NameRefusedError

FORMAT: Final = 1
RAGGED: Final = "ragged"
COMPRESSED: Final = "compressed"
FEATURES: Final = frozenset((RAGGED, COMPRESSED))
"""Optional features of the format that this version knows (`requires` in a record)."""
_REMEDIES: Final = {
    "journal": "the journal left format 1 before its first release; open the store for writing and close it with "
    "embstore at commit 317788e, which moves its rows into chunk files"
}
"""How to read a store that requires a feature which this version no longer has."""
STRING: Final = "string"
BFLOAT16: Final = "bfloat16"
NUMERIC: Final = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)
FIELD_DTYPES: Final = frozenset((*NUMERIC, BFLOAT16))
COLUMN_DTYPES: Final = frozenset((*NUMERIC, STRING))
COMPRESSIONS: Final = ("zstd", "blosc")
DEFAULT_FIELD: Final = "embedding"
"""Name of the field of a store whose rows came without a name."""
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
KEY_ARRAYS: Final = ("file_id", "class_code", "class_names", "key_hash", "dead_rows")
_RESERVED: Final = frozenset((*KEY_ARRAYS, "index", "zarr.json", "key", "class_name", "sample", "row"))
_RESERVED_DIMS: Final = frozenset(("sample", "class", "dead_row", "key_hash_half"))
BFLOAT16_NAN: Final = 0x7FC0
MAX_NAME: Final = 128
MAX_ARRAY_NAME: Final = MAX_NAME + 16
MAX_DIMENSIONS: Final = 16
MAX_ORIGINS: Final = 62
"""One bit each in the int64 column of the origins of rows."""


class SchemaError(ValueError):
    """A record that breaks the format. Attribute `problems` lists each problem with its place."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


def check_name(name: object, taken: Iterable[str] = ()) -> str:
    """Return `name` if it may name a field or a column, and is not `taken`.

    Raises
    ------
    NameRefusedError
        The name is not ``[A-Za-z_][A-Za-z0-9_.]*``, is reserved, or differs from a taken name in case only (which is
        one name on some file systems).
    """
    name = check_array_name(name, taken, most=MAX_NAME)
    if name.endswith("_offsets"):
        raise NameRefusedError(name, "it is reserved by the format")
    return name


def check_array_name(name: object, taken: Iterable[str], *, most: int = MAX_ARRAY_NAME) -> str:
    """Return `name` if it may name the array of a field or a column, and is not `taken`. See `check_name`.

    Raises
    ------
    NameRefusedError
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise NameRefusedError(name, "expected letters, digits, '_' and '.', not starting with a digit or '.'")
    if len(name) > most:
        raise NameRefusedError(name, f"it is longer than {most} characters")
    if name.casefold() in _RESERVED or name.startswith("__") or name.endswith("."):
        raise NameRefusedError(name, "it is reserved by the format")
    if any(name.casefold() == other.casefold() for other in taken):
        raise NameRefusedError(name, "it is taken")
    return plain_text(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldSpec(PickledByName):
    """The spec of a field (an embedding column).

    Parameters
    ----------
    shape : tuple of int
        Shape of one row, each size at least 1, or ``()`` for one number a row. In a ragged field, the shape of a token.
    dtype : str
        A NumPy name, or ``"bfloat16"``.
    layer, pooling : str, optional
        The output of the encoder, and the way in which it was pooled.
    nonfinite : {"refuse", "allow"}
        Whether NaN and infinity may be stored.
    dims : tuple of str, optional
        Names of the row's dimensions, for xarray.
    ragged : bool
        Whether rows differ in length: ``(length, *shape)``.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    layer: str | None = None
    pooling: str | None = None
    nonfinite: Literal["refuse", "allow"] = "refuse"
    dims: tuple[str, ...] | None = None
    ragged: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.shape, Iterable) or isinstance(self.shape, str | bytes):
            raise TypeError(f"expected a shape such as (768,), found {self.shape!r:.200}")
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "dtype", dtype_name(self.dtype))
        if self.dims is not None:
            object.__setattr__(self, "dims", tuple(map(plain_text, self.dims)))
        for name in ("layer", "pooling", "nonfinite"):
            object.__setattr__(self, name, plain_text(getattr(self, name)))
        problems = []
        if self.dtype not in FIELD_DTYPES:
            problems.append(f"dtype: expected one of {sorted(FIELD_DTYPES)}, found {self.dtype!r}")
        if any(n < 1 for n in self.shape) or len(self.shape) > MAX_DIMENSIONS:
            problems.append(f"shape: expected at most {MAX_DIMENSIONS} sizes of at least 1, found {self.shape}")
        if not isinstance(self.ragged, bool):
            problems.append(f"ragged: expected true or false, found {self.ragged!r}")
        if self.dims is not None and (
            not all(isinstance(dim, str) for dim in self.dims)
            or len(self.dims) != len(self.shape)
            or len({*self.dims} - _RESERVED_DIMS) < len(self.shape)
        ):
            problems.append(
                f"dims: expected {len(self.shape)} different names, none of {sorted(_RESERVED_DIMS)}, found {self.dims}"
            )
        for what, value in (("layer", self.layer), ("pooling", self.pooling)):
            if not isinstance(value, str | None):
                problems.append(f"{what}: expected text, found {value!r}")
        if self.nonfinite not in ("refuse", "allow"):
            problems.append(f"nonfinite: expected 'refuse' or 'allow', found {self.nonfinite!r}")
        if problems:
            raise SchemaError(problems)

    @property
    def floating(self) -> bool:
        """Whether the values can be NaN."""
        return self.dtype.startswith(("float", "bfloat"))

    @property
    def meaning(self) -> dict[str, Any]:
        """The members that define the values. `dims` and `nonfinite` do not."""
        return {name: getattr(self, name) for name in ("shape", "dtype", "layer", "pooling", "ragged")}

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row, or of one token of a ragged field."""
        return np.dtype(self.zarr_dtype).itemsize * math.prod(self.shape)

    @property
    def zarr_dtype(self) -> str:
        """Zarr data type of its array: ``uint16`` for bfloat16."""
        return stored_dtype(self.dtype)


def stored_dtype(dtype: str) -> str:
    """Return the NumPy name of the dtype of stored values."""
    return "uint16" if dtype == BFLOAT16 else dtype


def offsets_name(field: str) -> str:
    """Return the name of the array with the offsets of a ragged field."""
    return f"{field}_offsets"


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnSpec:
    """The dtype of a column (one value a row), its current array, and its fill as text: see `fill_text`."""

    dtype: str
    array: str
    fill: str | None = None

    def __post_init__(self) -> None:
        _ = self.fill_value  # raises ValueError for text that is no value of the dtype

    @property
    def fill_value(self) -> Any:
        """The value of rows that are given none. By default "" and NaN. Integers and bools may have none, as None."""
        if self.dtype == STRING:
            return self.fill or ""
        if self.fill is None:
            return math.nan if self.dtype.startswith("float") else None
        value = json.loads(self.fill)
        expected = bool if self.dtype == "bool" else int | float if self.dtype.startswith("float") else int
        whole = self.dtype.startswith(("int", "uint"))
        if isinstance(value, bool) != (expected is bool) or not isinstance(value, expected):
            raise ValueError(f"expected a value of {self.dtype}, found {value!r}")
        if whole and not np.iinfo(self.dtype).min <= value <= np.iinfo(self.dtype).max:
            raise ValueError(f"expected a value of {self.dtype}, found {value!r}")
        return value


def fill_text(value: Any) -> str | None:
    """Return a fill as the record has it: the text of a string column, else JSON, with NaN. None for the default."""
    if isinstance(value, str):
        return value or None
    return None if value is None or value != value else json.dumps(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin(PickledByName):
    """Where the samples of a data set come from.

    Parameters
    ----------
    kind : str
        Of the source: "folder", "table", "huggingface", "items", or the name of a class.
    root : str, optional
        Absolute path of a folder or file. Copies of a store for other people leave it out.
    builder, config, split : str, optional
        Of a data set of Hugging Face.
    """

    kind: str
    root: str | None = None
    builder: str | None = None
    config: str | None = None
    split: str | None = None

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if value is not None:  # a path need not be valid Unicode
                text = str(value).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
                object.__setattr__(self, name, text)

    @property
    def is_place(self) -> bool:
        """Whether it says more than the kind."""
        return self.root is not None or self.builder is not None

    def __str__(self) -> str:
        parts = (self.kind, self.root, self.builder, self.config, self.split)
        return " ".join(part for part in parts if part is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """The committed bytes of an array's last chunk: their number and CRC-32C (RFC 3720, appendix B.4)."""

    nbytes: int
    crc32c: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayState:
    """One array of the group as a commit left it.

    `dtype` is the Zarr data type (``uint16`` for bfloat16), `shape` the shape of one row, `fill` the value of a
    blank row if it differs from the default of the data type (the NaN of bfloat16), `compression` the codec of the
    chunks, `length` the number of committed rows, `digest` the digest of full chunks, and `tail` the checksum of the
    rows in its last chunk.
    """

    dtype: str
    shape: tuple[int, ...]
    dims: tuple[str, ...]
    rows_per_chunk: int
    fill: int | None = None
    compression: str | None = None
    length: int = 0
    digest: str | None = None
    tail: Tail | None = None

    @property
    def full_chunks(self) -> int:
        """Number of chunk files without padding."""
        return self.length // self.rows_per_chunk

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row (of a numeric array)."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)

    @property
    def chunk_nbytes(self) -> int:
        """Bytes of the values of one chunk (of a numeric array), without the checksum."""
        return self.row_nbytes * self.rows_per_chunk

    @property
    def chunks(self) -> int:
        """Number of chunk files."""
        return -(-self.length // self.rows_per_chunk)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The commit record, which defines the content of a store."""

    config: dict[str, Any]
    fingerprint: str
    generation: str
    commit_id: str
    epoch: int = 0
    rows: int = 0
    fields: dict[str, FieldSpec] = field(default_factory=dict)
    columns: dict[str, ColumnSpec] = field(default_factory=dict)
    arrays: dict[str, ArrayState] = field(default_factory=dict)
    erasing: dict[str, Tail] | None = None
    dropped: tuple[str, ...] = ()
    origins: tuple[Origin, ...] = ()
    provenance: dict[str, str] = field(default_factory=dict)
    options: dict[str, int] = field(default_factory=dict)
    compression: str | None = None
    primary: str | None = None

    @property
    def requires(self) -> list[str]:
        """Features that a reader must know."""
        compressed = any(array.compression for array in self.arrays.values())
        used = {RAGGED: bool(self.ragged), COMPRESSED: compressed}
        return [feature for feature, is_used in used.items() if is_used]

    @property
    def dead(self) -> int:
        """Number of deleted rows."""
        return self.arrays["dead_rows"].length

    @property
    def ragged(self) -> list[str]:
        """Names of the ragged fields."""
        return [name for name, spec in self.fields.items() if spec.ragged]

    @property
    def sample_arrays(self) -> set[str]:
        """Names of the arrays with one row for each sample."""
        others = {name for field in self.ragged for name in (field, offsets_name(field))}
        return self.arrays.keys() - {"class_names", "dead_rows"} - others

    def with_arrays(self, **arrays: ArrayState) -> Record:
        """Return the record with some arrays replaced."""
        return replace(self, arrays={**self.arrays, **arrays})

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values, without its checksum."""
        return {
            "format": FORMAT,
            "requires": self.requires,
            "config": self.config,
            "fingerprint": self.fingerprint,
            "generation": self.generation,
            "commit_id": self.commit_id,
            "epoch": self.epoch,
            "rows": self.rows,
            "fields": _as_dicts(self.fields),
            "columns": _as_dicts(self.columns),
            "arrays": _as_dicts(self.arrays),
            **({} if self.erasing is None else {"erasing": _as_dicts(self.erasing)}),
            **({"dropped": list(self.dropped)} if self.dropped else {}),
            **({"origins": [_as_dict(origin) for origin in self.origins]} if self.origins else {}),
            "provenance": self.provenance,
            "options": self.options,
            **({} if self.compression is None else {"compression": self.compression}),
            **({} if self.primary is None else {"primary": self.primary}),
        }


def unsupported(value: Any, also: frozenset[str] = frozenset()) -> str | None:
    """Return the format number or features of a record that this version can't read, or None. `also` are known too."""
    if not isinstance(value, dict) or not isinstance(value.get("format"), int):
        return None  # not a record at all: the parser raises
    if value["format"] > FORMAT:
        return f"format {value['format']}"
    requires = value.get("requires")
    unknown = [requires]
    if isinstance(requires, list):
        unknown = [feature for feature in requires if not isinstance(feature, str) or feature not in FEATURES | also]
    remedies = [_REMEDIES[feature] for feature in unknown if isinstance(feature, str) and feature in _REMEDIES]
    return "; ".join([f"features {unknown}", *remedies]) if unknown else None


def check_provenance(provenance: Mapping[str, str] | None) -> dict[str, str]:
    """Return provenance after a check that it is text under names.

    Raises
    ------
    ConfigError
    """
    provenance = mapping_of("provenance", provenance, "names to text")
    for name, value in provenance.items():
        if not isinstance(name, str) or not NAME.fullmatch(name) or not isinstance(value, str):
            raise ConfigError(
                f"provenance.{name}", value, "expected text, under a name of letters, digits, '_' and '.'"
            )
    return {name: plain_text(value) for name, value in provenance.items()}


def dtype_name(dtype: Any) -> str:
    """Return the NumPy name of a dtype, or ``"bfloat16"``. Takes dtypes of torch too."""
    text = (plain_text(dtype) if isinstance(dtype, str) else str(dtype)).removeprefix("torch.")
    if text in (BFLOAT16, STRING):
        return text
    try:
        return np.dtype(dtype if not isinstance(dtype, str) and text == str(dtype) else text).name
    except (TypeError, ValueError, SyntaxError):  # NumPy parses some texts as Python: "4*é" is a ValueError
        return text


def _as_dict(spec: Any) -> dict[str, Any]:
    """Return a spec as JSON values, without the members that are optional and not used."""
    values = {name: getattr(spec, name) for name in spec.__dataclass_fields__}
    return {
        name: list(value) if isinstance(value, tuple) else _as_dict(value) if isinstance(value, Tail) else value
        for name, value in values.items()
        if value is not None and not (name == "ragged" and value is False)
    }


def _as_dicts(specs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: _as_dict(spec) for name, spec in specs.items()}

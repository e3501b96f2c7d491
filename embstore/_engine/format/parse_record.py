"""Parse the JSON of a commit record. Every name and size is checked, and every problem is listed. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final

from embstore._engine.format.config import Config
from embstore._engine.format.record import (
    COLUMN_DTYPES,
    COMPRESSIONS,
    FIELD_DTYPES,
    FORMAT,
    KEY_ARRAYS,
    MAX_ARRAY_NAME,
    MAX_DIMENSIONS,
    MAX_ORIGINS,
    NAME,
    STRING,
    ArrayState,
    ColumnSpec,
    FieldSpec,
    Origin,
    Record,
    SchemaError,
    Tail,
    check_array_name,
    check_name,
    offsets_name,
)
from embstore.errors import ConfigError, NameRefusedError

_HEX = re.compile(r"[0-9a-f]+")
_MAX_COUNT: Final = 2**48
_MAX_CHUNK_BYTES: Final = 2**32


def record_from_json(value: Any) -> Record:
    """Parse a record of this format.

    Raises
    ------
    SchemaError
        With every problem found. `record.unsupported` checks the format number and `requires` before.
    """
    parser = _Parser()
    record = parser.record(value)
    if parser.problems or record is None:
        raise SchemaError(parser.problems)
    return record


class _Parser:
    """Turns the JSON of a record into values, and collects its problems."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def record(self, value: Any) -> Record | None:
        if not isinstance(value, dict):
            self.problems.append(f"record: expected an object, found {type(value).__name__}")
            return None
        get = value.get
        if get("format") != FORMAT:
            self.problems.append(f"format: expected {FORMAT}, found {get('format')!r}")
        erasing = get("erasing")
        record = Record(
            config=self._object(get("config"), "config"),
            fingerprint=self._hex(get("fingerprint"), "fingerprint", 64),
            generation=self._hex(get("generation"), "generation", 32),
            commit_id=self._hex(get("commit_id"), "commit_id", 32),
            epoch=self._count(get("epoch"), "epoch"),
            rows=self._count(get("rows"), "rows"),
            fields=self._each(get("fields"), "fields", self._field),
            columns=self._each(get("columns"), "columns", self._column),
            arrays=self._each(get("arrays"), "arrays", self._array),
            erasing=None if erasing is None else self._each(erasing, "erasing", self._tail),
            dropped=self._texts(get("dropped", []), "dropped"),
            origins=self._origins(get("origins", [])),
            provenance=self._each(get("provenance", {}), "provenance", self._text),
            options=self._each(get("options", {}), "options", self._count),
            compression=self._one_of(get("compression"), COMPRESSIONS, "compression", optional=True),
            primary=None if get("primary") is None else self._text(get("primary"), "primary"),
        )
        if not self.problems:
            for feature in record.requires:
                if feature not in get("requires", []):
                    self.problems.append(f"requires: expected {feature!r}, since it is used")
            self._agreement(record)
        return record

    def _agreement(self, record: Record) -> None:
        """Check that the parts of a record agree with each other."""
        arrays = record.arrays
        rows = record.rows
        expected: dict[str, tuple[str, tuple[int, ...], int | None]] = {
            "file_id": (STRING, (), rows),
            "class_code": ("int32", (), rows),
            "key_hash": ("uint64", (2,), rows),
            "class_names": (STRING, (), None),
            "dead_rows": ("int64", (), None),
        }
        for name, spec in record.fields.items():
            expected[name] = (spec.zarr_dtype, spec.shape, None if spec.ragged else rows)
            if spec.ragged:
                expected[offsets_name(name)] = ("int64", (), rows + 1)
        for name, column in record.columns.items():
            if column.array in expected:
                self.problems.append(f"columns.{name}.array: {column.array!r} belongs to another field or column")
            expected[column.array] = (column.dtype, (), rows)
        for name, (dtype, shape, length) in expected.items():
            state = arrays.get(name)
            if state is None:
                self.problems.append(f"arrays.{name}: missing")
            elif name == "dead_rows" and state.length > rows:
                self.problems.append(f"arrays.dead_rows: expected at most {rows} rows, found {state.length}")
            elif (state.dtype, state.shape, state.length) != (dtype, shape, state.length if length is None else length):
                self.problems.append(
                    f"arrays.{name}: expected {dtype} {shape} of {length if length is not None else 'any'} rows, "
                    f"found {state.dtype} {state.shape} of {state.length}"
                )
        for name, array in arrays.items():
            if array.compression is not None and name not in record.fields:
                self.problems.append(f"arrays.{name}.compression: only fields are compressed")
        if record.primary is not None and record.primary not in record.fields:
            self.problems.append(f"primary: expected the name of a field, found {record.primary!r}")
        for name in arrays.keys() - expected.keys():
            self.problems.append(f"arrays.{name}: expected the array of a field or a column")
        for name in arrays.keys() - set(KEY_ARRAYS):
            self._may_name(check_array_name, name, arrays.keys() - {name}, "arrays")
        for name in record.dropped:  # the next writer removes these folders
            self._may_name(check_array_name, name, arrays, "dropped")
        for name in (*record.fields, *record.columns):
            self._may_name(check_name, name, (), "fields" if name in record.fields else "columns")
        try:
            if Config(record.config).fingerprint != record.fingerprint:
                self.problems.append("fingerprint: it does not match the config")
        except ConfigError as error:
            self.problems.append(f"config: {error}")

    def _may_name(self, check: Callable[..., str], name: str, taken: Iterable[str], place: str) -> None:
        try:
            check(name, taken)
        except NameRefusedError as error:
            self.problems.append(f"{place}.{name}: {error}")

    def _object(self, value: Any, place: str) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        self.problems.append(f"{place}: expected an object, found {type(value).__name__}")
        return {}

    def _each(self, value: Any, place: str, parse: Any) -> dict[str, Any]:
        result = {}
        for name, item in self._object(value, place).items():
            where = f"{place}.{name}"
            if not NAME.fullmatch(name) or len(name) > MAX_ARRAY_NAME:
                self.problems.append(f"{where}: expected {MAX_ARRAY_NAME} letters, digits, '_' and '.' at most")
            elif (parsed := parse(item, where)) is not None:
                result[name] = parsed
        return result

    def _field(self, value: Any, place: str) -> FieldSpec | None:
        value = self._object(value, place)
        dims = value.get("dims")
        dtype = self._one_of(value.get("dtype"), FIELD_DTYPES, f"{place}.dtype")
        if dtype is None:
            return None
        try:
            return FieldSpec(
                shape=self._sizes(value.get("shape"), f"{place}.shape"),
                dtype=dtype,
                layer=value.get("layer"),
                pooling=value.get("pooling"),
                nonfinite=value.get("nonfinite", "refuse"),
                dims=None if dims is None else self._texts(dims, f"{place}.dims"),
                ragged=value.get("ragged", False),
            )
        except SchemaError as error:
            self.problems.extend(f"{place}.{problem}" for problem in error.problems)
            return None

    def _column(self, value: Any, place: str) -> ColumnSpec | None:
        value = self._object(value, place)
        dtype = self._one_of(value.get("dtype"), COLUMN_DTYPES, f"{place}.dtype")
        array = self._text(value.get("array"), f"{place}.array")
        fill = None if value.get("fill") is None else self._text(value["fill"], f"{place}.fill")
        try:
            return None if dtype is None else ColumnSpec(dtype=dtype, array=array, fill=fill)
        except (ValueError, RecursionError):
            self.problems.append(f"{place}.fill: expected a value of {dtype}, found {fill!r}")
            return None

    def _array(self, value: Any, place: str) -> ArrayState | None:
        value = self._object(value, place)
        dtype = self._one_of(value.get("dtype"), COLUMN_DTYPES, f"{place}.dtype")
        if dtype is None:
            return None
        tail = value.get("tail")
        state = ArrayState(
            dtype=dtype,
            shape=self._sizes(value.get("shape"), f"{place}.shape"),
            dims=self._texts(value.get("dims"), f"{place}.dims"),
            rows_per_chunk=self._count(value.get("rows_per_chunk"), f"{place}.rows_per_chunk", 2**31, least=1),
            fill=None if value.get("fill") is None else self._count(value["fill"], f"{place}.fill", 2**16 - 1),
            compression=self._one_of(value.get("compression"), COMPRESSIONS, f"{place}.compression", optional=True),
            length=self._count(value.get("length"), f"{place}.length"),
            digest=None if value.get("digest") is None else self._hex(value["digest"], f"{place}.digest", 16),
            tail=None if tail is None else self._tail(tail, f"{place}.tail"),
        )
        if dtype != STRING and state.chunk_nbytes > _MAX_CHUNK_BYTES:
            self.problems.append(
                f"{place}: expected chunks of at most {_MAX_CHUNK_BYTES} bytes, found {state.chunk_nbytes}"
            )
            return None
        if len(state.dims) != len(state.shape) + 1:
            self.problems.append(f"{place}.dims: expected {len(state.shape) + 1} names, found {len(state.dims)}")
        if (state.full_chunks == 0) != (state.digest is None):
            self.problems.append(f"{place}.digest: expected it for arrays with a full chunk, and only these")
        if (state.length == 0) != (state.tail is None):
            self.problems.append(f"{place}.tail: expected it for arrays with rows, and only these")
        elif state.tail is not None and dtype != STRING:
            rows = (state.length - 1) % state.rows_per_chunk + 1
            if state.tail.nbytes != rows * state.row_nbytes:
                self.problems.append(
                    f"{place}.tail.nbytes: expected {rows * state.row_nbytes}, found {state.tail.nbytes}"
                )
        return state

    def _origins(self, value: Any) -> tuple[Origin, ...]:
        if not isinstance(value, list) or len(value) > MAX_ORIGINS:
            self.problems.append(f"origins: expected a list of at most {MAX_ORIGINS} objects, found {value!r:.200}")
            return ()
        return tuple(self._origin(item, f"origins[{i}]") for i, item in enumerate(value))

    def _origin(self, value: Any, place: str) -> Origin:
        value = self._object(value, place)
        names = [name for name in Origin.__dataclass_fields__ if name != "kind" and value.get(name) is not None]
        return Origin(
            kind=self._text(value.get("kind"), f"{place}.kind"),
            **{name: self._text(value[name], f"{place}.{name}") for name in names},
        )

    def _tail(self, value: Any, place: str) -> Tail:
        value = self._object(value, place)
        return Tail(
            nbytes=self._count(value.get("nbytes"), f"{place}.nbytes", _MAX_CHUNK_BYTES),
            crc32c=self._count(value.get("crc32c"), f"{place}.crc32c", 2**32 - 1),
        )

    def _one_of(self, value: Any, known: Collection[str], place: str, *, optional: bool = False) -> str | None:
        if (value is None and optional) or (isinstance(value, str) and value in known):
            return value
        self.problems.append(f"{place}: expected one of {sorted(known)}, found {value!r}")
        return None

    def _count(self, value: Any, place: str, most: int = _MAX_COUNT, *, least: int = 0) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        self.problems.append(f"{place}: expected an integer from {least} to {most}, found {value!r}")
        return least

    def _sizes(self, value: Any, place: str) -> tuple[int, ...]:
        if not isinstance(value, list) or len(value) > MAX_DIMENSIONS:
            self.problems.append(f"{place}: expected a list of sizes, found {value!r}")
            return ()
        return tuple(self._count(n, f"{place}[{i}]", least=1) for i, n in enumerate(value))

    def _text(self, value: Any, place: str) -> str:
        if isinstance(value, str):
            return value
        self.problems.append(f"{place}: expected text, found {value!r}")
        return ""

    def _texts(self, value: Any, place: str) -> tuple[str, ...]:
        if not isinstance(value, list):
            self.problems.append(f"{place}: expected a list of names, found {value!r}")
            return ()
        return tuple(self._text(item, f"{place}[{i}]") for i, item in enumerate(value))

    def _hex(self, value: Any, place: str, digits: int) -> str:
        if isinstance(value, str) and len(value) == digits and _HEX.fullmatch(value):
            return value
        self.problems.append(f"{place}: expected {digits} hexadecimal digits, found {value!r}")
        return "0" * digits

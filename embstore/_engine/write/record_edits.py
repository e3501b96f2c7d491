"""Make a new record, or a record with one more field or column. Pure."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace

from embstore._engine.format.arguments import check_choice, mapping_of, whole_number
from embstore._engine.format.config import Config
from embstore._engine.format.record import (
    COLUMN_DTYPES,
    COMPRESSIONS,
    MAX_ORIGINS,
    ColumnSpec,
    FieldSpec,
    Origin,
    Record,
    check_name,
    check_provenance,
    dtype_name,
)
from embstore._engine.format.text import plain_text
from embstore._engine.format.zarr_layout import (
    FIELD_CHUNK_BYTES,
    MAX_CHUNK_BYTES,
    MAX_ROW_BYTES,
    column_array,
    field_arrays,
    key_arrays,
)
from embstore.errors import DtypeError, NameRefusedError, ShapeError, UnknownFieldError


def new_record(
    config: Config,
    *,
    fields: Mapping[str, FieldSpec] | None = None,
    columns: Mapping[str, str | ColumnSpec] | None = None,
    chunk_bytes: int = FIELD_CHUNK_BYTES,
    expected_rows: int = 0,
    compression: str | None = None,
    primary: str | None = None,
    provenance: Mapping[str, str] | None = None,
) -> Record:
    """Return the record of an empty store."""
    compression = plain_text(compression)
    check_choice("compression", compression, (None, *COMPRESSIONS))
    options = {
        "chunk_bytes": whole_number("chunk_bytes", chunk_bytes, 1, MAX_CHUNK_BYTES),
        "expected_rows": whole_number("expected_rows", expected_rows, 0, 2**40),
    }
    record = Record(
        config=config.to_dict(),
        fingerprint=config.fingerprint,
        generation=new_id(),
        commit_id=new_id(),
        arrays=key_arrays(expected_rows=expected_rows),
        provenance=check_provenance(provenance),
        options=options,
        compression=compression,
    )
    for name, spec in mapping_of("fields", fields, "field names to FieldSpec").items():
        record = with_field(record, name, spec)
    if primary is not None:
        if primary not in record.fields:
            raise UnknownFieldError(primary, record.fields)
        record = replace(record, primary=plain_text(primary))
    for name, dtype in mapping_of("columns", columns, "column names to dtypes").items():
        known = dtype if isinstance(dtype, ColumnSpec) else ColumnSpec(dtype=dtype_name(dtype), array=name)
        record = with_column(record, name, known.dtype, fill=known.fill)
    return record


def with_field(record: Record, name: str, spec: FieldSpec) -> Record:
    """Return the record with one more field, whose array is empty."""
    name = check_name(name, (*record.fields, *record.columns, *record.arrays))
    if not isinstance(spec, FieldSpec):
        raise TypeError(f"expected a FieldSpec for the field {name!r}, found {spec!r:.200}")
    ragged = [*record.ragged, *([name] if spec.ragged else [])]
    own_dims = {f"{field}_{what}" for field in ragged for what in ("token", "offset")}
    for dim in own_dims & {d for other in (spec, *record.fields.values()) for d in other.dims or ()}:
        raise NameRefusedError(dim, "it is the dimension of a ragged field's tokens")
    sizes = {
        dim: size for other in record.fields.values() for dim, size in zip(other.dims or (), other.shape, strict=False)
    }
    for dim, size in zip(spec.dims or (), spec.shape, strict=False):
        if sizes.setdefault(dim, size) != size:
            raise ShapeError(name, expected=f"{sizes[dim]} along {dim!r}, as in another field", found=size)
    if spec.row_nbytes > MAX_ROW_BYTES:
        raise ShapeError(name, expected=f"rows of at most {MAX_ROW_BYTES:,} bytes", found=f"{spec.row_nbytes:,}")
    options = record.options
    arrays = field_arrays(
        name,
        spec,
        expected_rows=options.get("expected_rows", 0),
        chunk_bytes=options.get("chunk_bytes", FIELD_CHUNK_BYTES),
        compression=record.compression,
    )
    primary = record.primary if record.fields else name
    return replace(record.with_arrays(**arrays), fields={**record.fields, name: spec}, primary=primary)


def with_column(
    record: Record, name: str, dtype: str, *, array_name: str | None = None, fill: str | None = None
) -> Record:
    """Return the record with one more column, whose array is empty. `fill` is that of its spec."""
    own = {name, record.columns[name].array} if name in record.columns else set()
    taken = (record.fields.keys() | record.columns.keys() | record.arrays.keys()) - own
    name, dtype = check_name(name, taken), dtype_name(dtype)
    if dtype not in COLUMN_DTYPES:
        raise DtypeError(name, expected=sorted(COLUMN_DTYPES), found=dtype)
    array_name = array_name or name
    array = column_array(dtype, expected_rows=record.options.get("expected_rows", 0))
    column = ColumnSpec(dtype=dtype, array=array_name, fill=fill)
    return replace(record.with_arrays(**{array_name: array}), columns={**record.columns, name: column})


def with_origin(record: Record, origin: Origin) -> tuple[Record, int]:
    """Return the record with an origin in its list, and the origin's bit in the column of origins.

    A full list stays, and the bit is 0: rows of an unknown origin.
    """
    if origin in record.origins:
        return record, 1 << record.origins.index(origin)
    if len(record.origins) == MAX_ORIGINS:
        return record, 0
    return replace(record, origins=(*record.origins, origin)), 1 << len(record.origins)


def successor(array: str, record: Record) -> str:
    """Return a free name for the array that replaces `array`: ``score.v2`` after ``score``, then ``score.v3``."""
    taken = {name.casefold() for name in (*record.arrays, *record.fields, *record.columns)}
    stem, dot, number = array.rpartition(".v")
    stem, last = (stem, int(number)) if dot and number.isdigit() else (array, 1)
    while f"{stem}.v{last + 1}".casefold() in taken:
        last += 1
    return f"{stem}.v{last + 1}"


def new_id() -> str:
    """Return 128 random bits as 32 hexadecimal digits."""
    return secrets.token_hex(16)

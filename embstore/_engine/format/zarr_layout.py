"""The layout of arrays in files: chunk sizes, chunk names and Zarr metadata. Pure.

Names and metadata follow Zarr v3 (https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html). `docs/format.md`
has the choices of embstore among those of Zarr, and their reasons.
"""

from __future__ import annotations

import math
import re
import sys
from dataclasses import replace
from typing import Any, Final

import numpy as np

from embstore._engine.format.record import BFLOAT16, BFLOAT16_NAN, STRING, ArrayState, FieldSpec, Record, offsets_name
from embstore._engine.format.values import checksum, digest

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("embstore maps little-endian files as they are; this machine is big-endian")
METADATA_NAME: Final = "zarr.json"
MAX_METADATA_BYTES: Final = 16 * 2**20
MAX_CHUNK_BYTES: Final = 2**30
FIELD_CHUNK_BYTES: Final = 8 * 2**20
_MAX_FIELD_CHUNK_BYTES: Final = 64 * 2**20
_SIDE_CHUNK_BYTES: Final = 64 * 2**10
_MAX_SIDE_CHUNK_BYTES: Final = 8 * 2**20
_STRING_CHUNK_ROWS: Final = 4096
_CLASS_CHUNK_ROWS: Final = 512
_MAX_STRING_CHUNK_ROWS: Final = 32_768  # at their longest, 2 GiB
MAX_ROW_BYTES: Final = MAX_CHUNK_BYTES
_MANY_CHUNKS: Final = 4096
_MANY_SIDE_CHUNKS: Final = 512
_CHUNK_NAME: Final = re.compile(r"c\.(0|[1-9][0-9]*)(\.0)*")  # not "c.txt", nor "c.²", which int() refuses
_ALIGNMENTS: Final = (2 * 2**20, 64 * 2**10, 16 * 2**10, 4 * 2**10)
"""A huge page (one fault and one TLB entry where the page cache has it whole), then the page size of some ARM systems,
of Apple's, and of others."""
ZSTD_LEVEL: Final = 3
BLOSC: Final = {"cname": "zstd", "clevel": 5, "shuffle": "shuffle", "blocksize": 0}


def rows_per_chunk(row_nbytes: int, target_nbytes: int) -> int:
    """Return a number of rows whose bytes are near `target_nbytes` and a multiple of a page.

    The bytes are a multiple of 2 MiB if that stays within twice the target (and 16 MiB, if the target does), else of
    64, 16 or 4 KiB. Where no multiple fits, columns are read chunk by chunk instead of mapped.

    Examples
    --------
    >>> rows_per_chunk(768 * 4, 8 * 2**20)
    2048
    >>> rows_per_chunk(1214 * 768 * 4, 8 * 2**20)  # 4 KiB is all that AST's rows allow
    2
    """
    most = min(2 * target_nbytes, max(2 * FIELD_CHUNK_BYTES, target_nbytes))
    for alignment in _ALIGNMENTS:
        unit = math.lcm(row_nbytes, alignment) // row_nbytes
        if unit * row_nbytes <= most:
            return unit * max(1, round(target_nbytes / row_nbytes / unit - 0.25))
    return max(1, target_nbytes // row_nbytes)


def _array(
    dtype: str, shape: tuple[int, ...], dims: tuple[str, ...], sizes: tuple[int, int, int], expected_rows: int
) -> ArrayState:
    """Describe an empty numeric array.

    `sizes` are the least and most bytes of a chunk, and the number of chunks from which chunks grow.
    """
    least, most, many = sizes
    row_nbytes = np.dtype(dtype).itemsize * math.prod(shape)
    target = min(max(least, expected_rows * row_nbytes // many), max(least, most))
    return ArrayState(dtype=dtype, shape=shape, dims=dims, rows_per_chunk=rows_per_chunk(row_nbytes, target))


def field_arrays(
    name: str,
    spec: FieldSpec,
    *,
    expected_rows: int = 0,
    chunk_bytes: int = FIELD_CHUNK_BYTES,
    compression: str | None = None,
) -> dict[str, ArrayState]:
    """Describe the empty arrays of a field: one, or tokens and offsets if it is ragged."""
    first = f"{name}_token" if spec.ragged else "sample"
    dims = (first, *(spec.dims or tuple(f"{name}_{i}" for i in range(len(spec.shape)))))
    sizes = (chunk_bytes, _MAX_FIELD_CHUNK_BYTES, _MANY_CHUNKS)
    array = _array(spec.zarr_dtype, spec.shape, dims, sizes, expected_rows)
    fill = BFLOAT16_NAN if spec.dtype == BFLOAT16 else None
    arrays = {name: replace(array, fill=fill, compression=compression)}
    if spec.ragged:
        arrays[offsets_name(name)] = column_array("int64", expected_rows=expected_rows, dim=f"{name}_offset")
    return arrays


_SIDE_SIZES: Final = (_SIDE_CHUNK_BYTES, _MAX_SIDE_CHUNK_BYTES, _MANY_SIDE_CHUNKS)


def column_array(dtype: str, *, expected_rows: int = 0, dim: str = "sample") -> ArrayState:
    """Describe the empty array of a column, or of another array with one value a row."""
    if dtype == STRING:
        rows = _STRING_CHUNK_ROWS
        while rows * _MANY_SIDE_CHUNKS < expected_rows and rows < _MAX_STRING_CHUNK_ROWS:
            rows *= 2
        return ArrayState(dtype=STRING, shape=(), dims=(dim,), rows_per_chunk=rows)
    return _array(dtype, (), (dim,), _SIDE_SIZES, expected_rows)


def key_arrays(*, expected_rows: int = 0) -> dict[str, ArrayState]:
    """Describe the five empty arrays that every store has."""
    return {
        "file_id": column_array(STRING, expected_rows=expected_rows),
        "class_code": column_array("int32", expected_rows=expected_rows),
        "class_names": replace(column_array(STRING, dim="class"), rows_per_chunk=_CLASS_CHUNK_ROWS),
        "key_hash": _array("uint64", (2,), ("sample", "key_hash_half"), _SIDE_SIZES, expected_rows),
        "dead_rows": column_array("int64", dim="dead_row"),
    }


def chunk_name(array: ArrayState, index: int) -> str:
    """Return the file name of chunk `index` along the first dimension.

    Examples
    --------
    >>> chunk_name(field_arrays("mean", FieldSpec(shape=(768,)))["mean"], 12)
    'c.12.0'
    """
    return f"c.{index}" + ".0" * len(array.shape)


def chunk_number(name: str, array: ArrayState | None = None) -> int | None:
    """Return the index in the file name of a chunk, of any array or of this one. None for other files."""
    found = _CHUNK_NAME.fullmatch(name)
    if found is None or (array is not None and name != chunk_name(array, int(found[1]))):
        return None
    return int(found[1])


def is_chunk(name: str, array: ArrayState | None = None) -> bool:
    """Return whether a file's name is that of a chunk, of any array or of this one."""
    return chunk_number(name, array) is not None


def blank(array: ArrayState) -> Any:
    """Return the value of a blank row. Other Zarr readers return it for a missing chunk too."""
    if array.dtype == STRING:
        return ""
    if array.fill is not None:
        return np.dtype(array.dtype).type(array.fill)
    return np.dtype(array.dtype).type("nan" if np.dtype(array.dtype).kind == "f" else 0)


def array_metadata(array: ArrayState) -> dict[str, Any]:
    """Return the Zarr v3 metadata of an array."""
    if array.dtype == STRING:
        fill: Any = ""
        encoder: dict[str, Any] = {"name": "vlen-utf8", "configuration": {}}
    else:
        value = blank(array).item()
        fill = "NaN" if value != value else value
        encoder = {"name": "bytes"}
        if np.dtype(array.dtype).itemsize > 1:
            encoder["configuration"] = {"endian": "little"}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [array.length, *array.shape],
        "data_type": array.dtype,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [array.rows_per_chunk, *array.shape]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": fill,
        "codecs": [encoder, *_compressor(array), {"name": "crc32c"}],
        "attributes": {},
        "dimension_names": list(array.dims),
    }


def _compressor(array: ArrayState) -> list[dict[str, Any]]:
    if array.compression == "zstd":
        return [{"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}}]
    if array.compression == "blosc":
        return [{"name": "blosc", "configuration": {**BLOSC, "typesize": np.dtype(array.dtype).itemsize}}]
    return []


def group_document(record: Record) -> dict[str, Any]:
    """Return the group's ``zarr.json``: the record, and inline consolidated metadata for other readers."""
    metadata = {name: array_metadata(array) for name, array in record.arrays.items()}
    attributes = record.to_json()
    attributes["metadata_checksum"] = digest(metadata)
    attributes["checksum"] = checksum(attributes)
    return {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {"embstore": attributes},
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": metadata},
    }

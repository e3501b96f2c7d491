"""Entries: a dictionary of tensors, or a file with an array for each key, as the rows of a table.

`embstore.exchange.pt` loads and saves the dictionaries.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from embstore._engine.format.record import BFLOAT16, DEFAULT_FIELD, STRING, FieldSpec, check_name, dtype_name
from embstore.errors import FileFormatError
from embstore.exchange.file_contents import Array, Unreadable, check_claim
from embstore.exchange.import_options import ImportOptions, chosen_columns, chosen_fields
from embstore.exchange.memory_file import MemoryFile, refusal, short_dtype
from embstore.exchange.scalars import column_of
from embstore.exchange.store_metadata import StoreMetadata
from embstore.exchange.table import LABELS, Table, exported_table

EMBEDDING: Final = ("embedding", "embeddings")
NAMES: Final = "key"
"""The array of names. No field or column can have this name."""
_NOTHING: Final[Mapping[str, Any]] = {}


def entries_table(path: Path, entries: Mapping[Any, Any], options: ImportOptions) -> Table:
    """Return the entries of a dictionary as rows.

    The shape and dtype of the field are those of most entries. A first axis of size one (a batch of one, as models
    return it) is removed if all entries have it.

    Raises
    ------
    FileFormatError
        No entry is an embedding.
    """
    torch = sys.modules.get("torch")
    # Parallel lists, because a tuple for each of 200,000 entries keeps the garbage collector busy.
    names, tensors, others, kinds = [], [], [], []
    codes: dict[tuple[Any, Any], int] = {}
    unreadable: list[Unreadable] = []
    for name, value in entries.items():
        tensor, entry, reason = _parts(value, torch)
        if reason:
            unreadable.append(Unreadable(name, reason))
            continue
        names.append(name)
        tensors.append(tensor)
        others.append(entry)
        kinds.append(codes.setdefault((tensor.shape, tensor.dtype), len(codes)))
    if not names:
        shown = ", ".join(f"{one.key!r}: {one.reason}" for one in unreadable[:3]) or "it is empty"
        raise FileFormatError(path, f"it is a dictionary without embeddings ({shown})")
    counted = dict(zip(codes, np.bincount(kinds).tolist(), strict=True))
    check_claim(path, sum(math.prod(shape) * count for (shape, _), count in counted.items()))
    squeezed = all(len(shape) > 1 and shape[0] == 1 for shape, _ in codes)
    spec = _spec_of_most(counted, squeezed, options.ragged)
    if spec is None:
        raise FileFormatError(path, f"its tensors have no values: the first is {tuple(tensors[0].shape)}")
    misfits = [_misfit(tuple(shape)[squeezed:], short_dtype(dtype), spec, options) for shape, dtype in codes]
    if any(misfits):
        unreadable += [Unreadable(n, misfits[kind]) for n, kind in zip(names, kinds, strict=True) if misfits[kind]]
        names, tensors, others = (
            [one for one, kind in zip(values, kinds, strict=True) if not misfits[kind]]
            for values in (names, tensors, others)
        )
    field = check_name(options.field or DEFAULT_FIELD)
    file = MemoryFile(path)
    file.add_column(NAMES, names)
    file.add_column(LABELS, [entry.get(LABELS) for entry in others])
    file.add_field(field, tensors, spec)
    left_out = _add_columns(file, others, options)
    return Table(
        file=file,
        options=options,
        fields={field: spec},
        sources={field: field},
        columns={name: found.dtype for name, found in file.arrays.items() if name not in (NAMES, LABELS, field)},
        rows=len(names),
        names=NAMES,
        labels=LABELS,
        unreadable=unreadable,
        left_out=left_out,
    )


def exported_entries_table(
    path: Path, entries: Mapping[Any, Any], metadata: StoreMetadata, options: ImportOptions
) -> Table:
    """Return the rows of a dictionary that `export_file` wrote.

    Raises
    ------
    FileFormatError
        An entry is not as the metadata says.
    UnknownFieldError, UnknownColumnError
    """
    for key, entry in entries.items():
        if not isinstance(entry, dict):
            raise FileFormatError(path, f"{key!r}: expected a dictionary, found {type(entry).__name__}")
    file = MemoryFile(path)
    file.add_column(NAMES, list(entries))
    file.add_column(LABELS, [entry.get(LABELS) for entry in entries.values()])
    for source in chosen_fields(list(metadata.fields), options.field, path).values():
        file.add_field(source, _stated_tensors(path, entries, source, metadata.fields[source]), metadata.fields[source])
    for name in chosen_columns(list(metadata.columns), options.columns, path):
        values = [entry.get(name) for entry in entries.values()]
        file.add_column(name, _stated_column(path, name, values, metadata.columns[name]))
    return exported_table(file, metadata, options, names=NAMES, order="file_id:class")


def _stated_tensors(path: Path, entries: Mapping[Any, Any], source: str, spec: FieldSpec) -> list[Any]:
    torch, tensors = sys.modules.get("torch"), []
    for key, entry in entries.items():
        found = entry.get(source, entry.get(DEFAULT_FIELD))
        if reason := refusal(found, torch):
            raise FileFormatError(path, f"{key!r}: {reason}")
        shape, dtype = tuple(found.shape), dtype_name(found.dtype)
        if len(shape) != len(spec.shape) + spec.ragged or shape[spec.ragged :] != spec.shape or dtype != spec.dtype:
            raise FileFormatError(path, f"{key!r}: expected {spec.dtype} {spec.shape}, found {dtype} {shape}")
        tensors.append(found)
    check_claim(path, sum(math.prod(tensor.shape) for tensor in tensors))
    return tensors


def _stated_column(path: Path, name: str, values: list[Any], dtype: str) -> Array | list[str]:
    kinds = {type(value) for value in values}
    if not kinds <= ({str} if dtype == STRING else {bool, int, float}):
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise FileFormatError(path, f"{name!r}: expected a column of {dtype}, found {found}")
    try:
        return values if dtype == STRING else np.array(values, dtype)
    except (ValueError, OverflowError) as error:
        raise FileFormatError(path, f"{name!r}: expected a column of {dtype}: {error}") from error


def _parts(value: Any, torch: Any) -> tuple[Any, Mapping[str, Any], str]:
    """Return the tensor of an entry, the whole entry, and the reason why it can't be a row or ""."""
    if not isinstance(value, dict):
        return value, _NOTHING, refusal(value, torch)
    there = [name for name in EMBEDDING if name in value]
    if len(there) != 1:
        return None, value, f"expected one of {' and '.join(map(repr, EMBEDDING))} in it, found {len(there)}"
    return value[there[0]], value, refusal(value[there[0]], torch)


def _spec_of_most(counted: Mapping[tuple[Any, Any], int], squeezed: bool, ragged: bool) -> FieldSpec | None:
    """Return the spec of the field that most tensors fit, or None if no tensor has values."""
    shapes, dtypes = Counter[tuple[int, ...]](), Counter[str]()
    for (shape, dtype), count in counted.items():
        shape = tuple(shape)[squeezed:]
        if len(shape) >= ragged and 0 not in shape[ragged:]:
            shapes[shape[ragged:]] += count
            dtypes[short_dtype(dtype)] += count
    if not shapes:
        return None
    return FieldSpec(shape=shapes.most_common(1)[0][0], dtype=dtypes.most_common(1)[0][0], ragged=ragged)


def _misfit(shape: tuple[int, ...], dtype: str, spec: FieldSpec, options: ImportOptions) -> str:
    if spec.ragged:
        if not shape or shape[1:] != spec.shape:
            return f"its shape is {shape}, that of most (length, {', '.join(map(str, spec.shape))})"
    elif shape != spec.shape:
        hint = "; ragged=True keeps rows of different lengths" if shape[1:] == spec.shape[1:] else ""
        return f"its shape is {shape}, that of most {spec.shape}{hint}"
    if dtype != spec.dtype:
        floats = all(name.startswith(("float", BFLOAT16)) for name in (dtype, spec.dtype))
        if options.casting == "no" or not floats:
            hint = '; casting="same_kind" converts it' if floats else ""
            return f"it is {dtype}, most are {spec.dtype}{hint}"
    return ""


def _add_columns(file: MemoryFile, entries: Sequence[Mapping[str, Any]], options: ImportOptions) -> list[Unreadable]:
    """Add the scalars that most entries have as columns. Return the others."""
    left_out: list[Unreadable] = []
    columns: list[str] = []
    names = dict.fromkeys(name for entry in entries for name in entry if name not in (*EMBEDDING, LABELS))
    for name in names:
        if options.columns is None or str(name) in options.columns:
            values = column_of(name, [entry.get(name) for entry in entries])
            if isinstance(values, Unreadable):
                left_out.append(values)
            else:
                columns.append(name)
                file.add_column(name, values)
    chosen_columns(columns, options.columns, file.path)
    return left_out

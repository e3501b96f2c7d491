"""Entries: a dictionary of tensors, or a file with an array for each key, as arrays of as many rows each.

`embstore.exchange.pt` loads and saves the dictionaries.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from embstore._engine.format.record import BFLOAT16, DEFAULT_FIELD, FieldSpec, check_name
from embstore._engine.write.check_input import column_values
from embstore.errors import DtypeError, FileFormatError, ShapeError
from embstore.exchange.file_contents import Array, Unreadable
from embstore.exchange.import_options import ImportOptions, chosen_columns, chosen_fields
from embstore.exchange.memory_file import EMBEDDING, LABELS, NAMES, MemoryFile, refusal, short_dtype
from embstore.exchange.scalars import column_of, plain
from embstore.exchange.store_metadata import StoreMetadata

_NOTHING: Final[Mapping[str, Any]] = {}


def entries_file(path: Path, entries: Mapping[Any, Any], options: ImportOptions) -> MemoryFile:
    """Return the entries of a dictionary as rows: names, classes, a field, and scalars of most entries as columns.

    The shape and dtype of the field are those of most entries. A first axis of size one (a batch of one, as models
    return it) is removed if all entries have it.

    Raises
    ------
    FileFormatError
        No entry is an embedding. Or names have no colon, and most arrays differ in shape, as matrices and labels do.
    """
    torch = sys.modules.get("torch")
    # Parallel lists, because a tuple for each of 200,000 entries keeps the garbage collector busy.
    names, tensors, others, kinds = [], [], [], []
    codes: dict[tuple[Any, Any], int] = {}
    file = MemoryFile(path)
    for name, value in entries.items():
        tensor, entry, reason = _parts(value, torch)
        if reason:
            file.unreadable.append(Unreadable(name, reason))
            continue
        names.append(name)
        tensors.append(tensor)
        others.append(entry)
        kinds.append(codes.setdefault((tensor.shape, tensor.dtype), len(codes)))
    if not names:
        shown = ", ".join(f"{one.key!r}: {one.reason}" for one in file.unreadable[:3]) or "it is empty"
        raise FileFormatError(path, f"it is a dictionary without embeddings ({shown})")
    counted = dict(zip(codes, np.bincount(kinds).tolist(), strict=True))
    bare = options.keys is None and len(entries) > 1 and not any(":" in str(name) for name in entries)
    if bare and not any(others) and not _most_alike(counted, len(entries), options.ragged):
        shown = ", ".join(f"{name!r} {tuple(tensor.shape)}" for name, tensor in zip(names[:3], tensors, strict=False))
        hint = 'ragged=True takes rows that differ in their first axis, keys="file_id" takes each array as a row'
        raise FileFormatError(path, f"most of its arrays differ in shape: {shown}; {hint}")
    squeezed = all(len(shape) > 1 and shape[0] == 1 for shape, _ in codes)
    spec = _spec_of_most(counted, squeezed, options.ragged)
    if spec is None:
        raise FileFormatError(path, f"its tensors have no values: the first is {tuple(tensors[0].shape)}")
    misfits = [_misfit(tuple(shape)[squeezed:], short_dtype(dtype), spec, options) for shape, dtype in codes]
    if any(misfits):
        file.unreadable += [Unreadable(n, misfits[kind]) for n, kind in zip(names, kinds, strict=True) if misfits[kind]]
        names, tensors, others = (
            [one for one, kind in zip(values, kinds, strict=True) if not misfits[kind]]
            for values in (names, tensors, others)
        )
    file.add_column(NAMES, names)
    file.add_column(LABELS, [plain(entry.get(LABELS)) for entry in others])
    file.add_field(check_name(options.field or DEFAULT_FIELD), tensors, spec)
    for name in dict.fromkeys(name for entry in others for name in entry if name not in (*EMBEDDING, LABELS)):
        if options.columns is None or str(name) in options.columns:
            file.add_column(name, column_of(name, [entry.get(name) for entry in others]))
    return file


def _most_alike(counted: Mapping[tuple[Any, Any], int], total: int, ragged: bool) -> bool:
    """Return True if more than half of the arrays have one shape, but for the first axis if they are ragged."""
    shapes = Counter[tuple[int, ...]]()
    for (shape, _), count in counted.items():
        shapes[tuple(shape)[ragged:]] += count
    return 2 * max(shapes.values()) > total


def exported_entries(
    path: Path, entries: Mapping[Any, Any], metadata: StoreMetadata, options: ImportOptions
) -> MemoryFile:
    """Return the rows of a dictionary that `export_file` wrote, or of a file with one array a row.

    Raises
    ------
    FileFormatError
        An entry is not as the metadata says.
    UnknownFieldError, UnknownColumnError
    """
    for key, entry in entries.items():
        if not isinstance(entry, dict):
            raise FileFormatError(path, f"{key!r}: expected a dictionary, found {type(entry).__name__}")
    casts = ImportOptions(casting="same_kind" if metadata.per_key else "no")  # bfloat16 may be written as float32
    file = MemoryFile(path)
    file.metadata, file.config = metadata, metadata.config
    file.add_column(NAMES, list(entries))
    file.add_column(LABELS, [entry.get(LABELS) for entry in entries.values()])
    for source in chosen_fields(list(metadata.fields), options.field, path).values():
        spec = metadata.fields[source]
        tensors = [entry.get(source, entry.get(DEFAULT_FIELD)) for entry in entries.values()]
        for key, found in zip(entries, tensors, strict=True):
            reason = refusal(found, sys.modules.get("torch"))
            if reason := reason or _misfit(tuple(found.shape), short_dtype(found.dtype), spec, casts):
                raise FileFormatError(path, f"{key!r}: {reason}")
        file.add_field(source, tensors, spec)
    for name in chosen_columns(list(metadata.columns), options.columns, path):
        values = [entry.get(name) for entry in entries.values()]
        file.add_column(name, _stated_column(path, name, values, metadata.columns[name]))
    return file


def _stated_column(path: Path, name: str, values: list[Any], dtype: str) -> Array | list[str]:
    try:
        found: Array | list[str] = column_values(name, dtype, values, len(values))[1]
        return found
    except (DtypeError, ShapeError) as error:
        raise FileFormatError(path, str(error)) from error


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
    """Return why a tensor is no row of the field, or ""."""
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

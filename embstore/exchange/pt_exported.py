"""Entries that `export_file` wrote: a dictionary of dictionaries whose fields and columns are stated beside it."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from embstore._engine.format.record import STRING, FieldSpec, dtype_name
from embstore.errors import FileFormatError
from embstore.exchange.file_contents import Array, check_claim
from embstore.exchange.import_options import ImportOptions, chosen_columns, chosen_fields
from embstore.exchange.pt_entries import DEFAULT_FIELD, EntriesTable, refusal
from embstore.exchange.store_metadata import StoreMetadata


def exported_entries_table(
    path: Path, entries: Mapping[Any, Any], metadata: StoreMetadata, options: ImportOptions
) -> EntriesTable:
    """Return the rows of a dictionary that `export_file` wrote.

    Raises
    ------
    FileFormatError
        An entry is not as the metadata says.
    UnknownFieldError, UnknownColumnError
    """
    sources = chosen_fields(list(metadata.fields), options.field, path)
    columns = chosen_columns(list(metadata.columns), options.columns, path)
    fields = {name: metadata.fields[source] for name, source in sources.items()}
    for key, entry in entries.items():
        if not isinstance(entry, dict):
            raise FileFormatError(path, f"{key!r}: expected a dictionary, found {type(entry).__name__}")
    tensors = {name: _tensors(path, entries, source, fields[name]) for name, source in sources.items()}
    check_claim(path, sum(math.prod(tensor.shape) for found in tensors.values() for tensor in found))
    return EntriesTable(
        path=path,
        config=metadata.config,
        fields=fields,
        columns={name: metadata.columns[name] for name in columns},
        rows=len(entries),
        declared=True,
        names=list(entries),
        labels=[entry.get("class_name") for entry in entries.values()],
        tensors=tensors,
        values={
            name: _column(path, name, [entry.get(name) for entry in entries.values()], metadata.columns[name])
            for name in columns
        },
        options=replace(options, keys="file_id:class"),
    )


def _tensors(path: Path, entries: Mapping[Any, Any], source: str, spec: FieldSpec) -> list[Any]:
    torch, tensors = sys.modules.get("torch"), []
    for key, entry in entries.items():
        found = entry.get(source, entry.get(DEFAULT_FIELD))
        if reason := refusal(found, torch):
            raise FileFormatError(path, f"{key!r}: {reason}")
        shape, dtype = tuple(found.shape), dtype_name(found.dtype)
        if len(shape) != len(spec.shape) + spec.ragged or shape[spec.ragged :] != spec.shape or dtype != spec.dtype:
            raise FileFormatError(path, f"{key!r}: expected {spec.dtype} {spec.shape}, found {dtype} {shape}")
        tensors.append(found)
    return tensors


def _column(path: Path, name: str, values: Sequence[Any], dtype: str) -> Array | list[str]:
    kinds = {type(value) for value in values}
    if not kinds <= ({str} if dtype == STRING else {bool, int, float}):
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise FileFormatError(path, f"{name!r}: expected a column of {dtype}, found {found}")
    if dtype == STRING:
        return list(values)
    try:
        return np.array(values, dtype)
    except (ValueError, OverflowError) as error:
        raise FileFormatError(path, f"{name!r}: expected a column of {dtype}: {error}") from error

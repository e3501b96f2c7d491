"""Entries that embstore wrote: a dictionary of tensors, as arrays that its manifest describes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from embstore._engine.format.record import STRING, FieldSpec, dtype_name
from embstore.exchange.base import ArrayFile, Block, Found, even_cuts
from embstore.exchange.manifest import Manifest
from embstore.exchange.pt_entries import DEFAULT_FIELD, blocks_of, refusal

__all__ = ["EntriesFile"]


class EntriesFile(ArrayFile):
    """A dictionary of tensors, or of dictionaries, with the manifest that was written beside it.

    Parameters
    ----------
    path : Path
    entries : mapping
    document : str

    Raises
    ------
    FileFormatError
        An entry is not what the manifest says.
    """

    def __init__(self, path: Path, entries: Mapping[Any, Any], document: str) -> None:
        super().__init__(path)
        self.document = document
        manifest = Manifest.from_json(document, path)
        if len(entries) != manifest.rows:
            raise self.wrong(f"its manifest says that it has {manifest.rows:,} entries, found {len(entries):,}")
        self._fields = manifest.fields
        self._tensors = {name: [self._tensor(e, name) for e in entries.items()] for name in manifest.fields}
        self._texts: dict[str, list[str]] = {"file_id": [], "class_name": []}
        for key in entries:
            file_id, colon, class_name = key.rpartition(":") if isinstance(key, str) else ("", "", "")
            if not colon:
                raise self.wrong(f"{key!r} is not a key that embstore writes")
            self._texts["file_id"].append(file_id)
            self._texts["class_name"].append(class_name)
        self._columns: dict[str, np.ndarray[Any, Any]] = {}
        for name, dtype in manifest.columns.items():
            values = [self._scalar(e, name) for e in entries.items()]
            if dtype == STRING:
                self._texts[name] = values
            else:
                self._columns[name] = self._numbers(name, values, dtype)
        texts = dict.fromkeys(self._texts, Found(dtype=STRING, shape=(), rows=manifest.rows))
        numbers = {n: Found(dtype=v.dtype.name, shape=(), rows=manifest.rows) for n, v in self._columns.items()}
        fields = {
            n: Found(dtype=s.dtype, shape=s.shape, rows=manifest.rows, ragged=s.ragged)
            for n, s in manifest.fields.items()
        }
        self.arrays = {**texts, **numbers, **fields}

    def _tensor(self, entry: tuple[Any, Any], name: str) -> Any:
        key, found = entry
        if isinstance(found, dict):
            found = found.get(name, found.get(DEFAULT_FIELD))
        if reason := refusal(found, sys.modules.get("torch")) or _misfit(found, self._fields[name]):
            raise self.wrong(f"{key!r}: {reason}")
        return found

    def _scalar(self, entry: tuple[Any, Any], name: str) -> Any:
        key, found = entry
        if not isinstance(found, dict) or not isinstance(found.get(name), str | bool | int | float):
            raise self.wrong(f"{key!r} has no {name!r}")
        return found[name]

    def _numbers(self, name: str, values: list[Any], dtype: str) -> np.ndarray[Any, Any]:
        try:
            return np.array(values, dtype)
        except (ValueError, TypeError, OverflowError) as error:
            raise self.wrong(f"{name!r} is not {dtype}: {error}") from error

    def numbers(self, name: str, width: int | None = None) -> Iterator[Block]:
        """Yield rows of numbers: ``(n, *shape)``."""
        if name in self._columns:
            yield Block(self._columns[name])
        else:
            yield from blocks_of(self._tensors[name], self._fields[name], squeezed=False)

    def ragged(self, name: str) -> Iterator[Block]:
        """Yield rows of different lengths, as `Ragged`."""
        yield from blocks_of(self._tensors[name], self._fields[name], squeezed=False)

    def strings(self, name: str) -> Iterator[list[str]]:
        """Yield rows of text."""
        values = self._texts[name]
        for start, stop in pairwise(even_cuts(len(values), 1)):
            if not set(map(type, values[start:stop])) <= {str}:
                raise self.wrong(f"{name!r} holds what is not text")
            yield values[start:stop]


def _misfit(tensor: Any, spec: FieldSpec) -> str:
    shape = tuple(tensor.shape)
    inner = shape[1:] if spec.ragged else shape
    if inner != spec.shape or len(shape) != len(spec.shape) + spec.ragged or dtype_name(tensor.dtype) != spec.dtype:
        return f"expected {spec.dtype} {spec.shape}, found {dtype_name(tensor.dtype)} {shape}"
    return ""

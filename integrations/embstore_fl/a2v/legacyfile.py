"""Reads the ``.pt`` file of the A2V code without running code in it, and writes it atomically."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from embstore._engine.io.durable import replacing
from embstore._engine.read.dtypes import as_numbers
from embstore.errors import FileFormatError
from embstore.exchange import Unreadable
from embstore.exchange import pt as legacy
from embstore.exchange.store_metadata import ENTRY
from embstore_fl.a2v.entries import OPTIONS, ClassOf, Entries, as_tensor, of_mapping
from embstore_fl.overlay import is_cls


def read_file(
    path: str | os.PathLike[str], own: Iterable[str] | None = None, class_of: ClassOf | None = None
) -> Entries:
    """Read a file of `torch.save` without running code in it. Tensors stay mapped from the file.

    Parameters
    ----------
    path : path_like
    own : iterable of str, optional
        Keys to read. Default: all.
    class_of : callable, optional
        Returns the class of a bare file_id, or None. If `own` is given, entries without a class are unreadable.

    Raises
    ------
    UnsafeFileError
        Loading the file would run code.
    FileFormatError
        The file is broken, or holds no embeddings.
    """
    loaded = legacy.load_file(Path(path))
    entries = loaded.get("embeddings", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(entries, dict) or ENTRY in loaded or legacy.is_columnar(entries):
        return _read_table(Path(path), own, class_of)
    found = of_mapping(entries, class_of)
    if not found.values and not found.unreadable:
        raise FileFormatError(Path(path), "it has no embeddings")
    if entries is not loaded and isinstance(loaded.get("metadata"), Mapping):
        found.config = loaded["metadata"]
    found.keep_alike()
    wanted = None if own is None else set(own)
    found.values = {key: row for key, row in found.values.items() if wanted is None or key in wanted}
    return found


def _read_table(path: Path, own: Iterable[str] | None, class_of: ClassOf | None) -> Entries:
    """Read a matrix with the names of its rows, block by block, or a file that embstore exported."""
    table = legacy.read_table(path, OPTIONS)
    wanted, names = None if own is None else set(own), [one for block in table.row_names() for one in block]
    found = Entries(unreadable=list(table.file.unreadable), config=table.file.config, class_of=class_of)
    keys: dict[int, str] = {}
    for place, one in enumerate(names):
        if isinstance(one, Unreadable):
            found.unreadable.append(one)
        elif wanted is None:
            keys[place] = str(one[1])
        elif (labelled := found.labelled(*one)) and str(labelled) in wanted:
            keys[place] = str(labelled)
    name = next(iter(table.fields))
    start = 0
    for block in table.field(name):
        count = len(block.values)
        for place in range(start, start + count):
            if place in keys and place - start not in block.bad:
                numbers = as_numbers(np.array(block.values[place - start]), table.fields[name])
                found.values[keys[place]] = as_tensor(numbers)
        start += count
    return found


def write_file(path: str | os.PathLike[str], values: Mapping[Any, Any]) -> None:
    """Write embeddings as ``{"file_id:class": tensor}``. An existing file keeps its entries of other samples.

    Keys in either order are written in this form. An unreadable entry is written unchanged.

    Raises
    ------
    UnsafeFileError, FileFormatError
        The existing file can't be read. It is left unchanged.
    StorageFullError
    """
    import torch

    place = Path(path).absolute()
    whole: dict[Any, Any] = dict(read_file(place).values) if place.exists() else {}
    found = of_mapping(values)
    add_rows(whole, found.values)
    whole |= {one.key: values[one.key] for one in found.unreadable}
    with replacing(place) as partial:
        torch.save({key: _alone(value) for key, value in whole.items()}, partial)


def add_rows(whole: dict[Any, Any], values: Mapping[Any, Any]) -> None:
    """Add embeddings to others. A row of the CLS token alone does not replace the whole sequence, which serves all."""
    for key, value in values.items():
        shapes = [tuple(getattr(one, "shape", ())) for one in (value, whole.get(key))]
        if not is_cls(shapes[0]) or is_cls(shapes[1]) or key not in whole:
            whole[key] = value


def _alone(value: Any) -> Any:
    """Return a tensor over the same memory with its own storage.

    `torch.save` writes whole storages. A row of a store is a slice of one tensor, whose storage holds the rows of all
    other clients.
    """
    import torch

    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach().cpu().contiguous()
    if value.dtype == torch.bfloat16:
        return torch.from_numpy(value.view(torch.int16).numpy()).view(torch.bfloat16)
    return torch.from_numpy(value.numpy())

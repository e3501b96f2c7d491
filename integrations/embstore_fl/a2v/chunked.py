"""The cache of the A2V code from 29 January 2026 on: its calls, and its folders of ``.npy`` chunks.

A folder for each class has ``manifest.json`` and ``embeddings_000.npy``, …: ``(n, *shape)``. The manifest has chunk and
row of each file_id. It states neither sample rate nor duration nor model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, TypedDict

from embstore._engine.format.keys import split_text
from embstore.exchange import Unreadable
from embstore.exchange.npy import manifest_rows
from embstore_fl.a2v.entries import VALUES, Entries
from embstore_fl.overlay import StoreLayer


class ClassRows(TypedDict):
    """The embeddings of a class that a look-up found, with the names of the A2V code.

    Attributes
    ----------
    manifest : dict
        ``class_name``, ``total_samples`` and ``embedding_shape``.
    chunks : list of Path
        Stores.
    index_map : dict
        By file_id: store, as its index in `chunks`, and row number.
    """

    manifest: dict[str, Any]
    chunks: list[PurePath]
    index_map: dict[str, list[int]]


def rows_by_class(layers: Sequence[StoreLayer], classes: Iterable[str] | None) -> dict[str, ClassRows]:
    """Return the rows of stores by class. A class without rows is left out.

    Parameters
    ----------
    layers : sequence of StoreLayer
    classes : iterable of str, optional
        Default: all.
    """
    wanted = None if classes is None else {name.lower() for name in classes}
    found: dict[str, ClassRows] = {}
    for place, layer in enumerate(layers):
        for key, row in layer.rows.items():
            file_id, name = split_text(key)
            if wanted is not None and name not in wanted:
                continue
            if name not in found:
                manifest = {"class_name": name, "total_samples": 0, "embedding_shape": list(layer.spec.shape)}
                found[name] = {"manifest": manifest, "chunks": [one.path for one in layers], "index_map": {}}
            found[name]["index_map"][file_id] = [place, row]
            found[name]["manifest"]["total_samples"] += 1
    return found


def is_by_class(embeddings: Mapping[Any, Any]) -> bool:
    """Return whether a mapping is ``{class: {file_id: row}}``. Other mappings have a row, or its dictionary, by key.

    Examples
    --------
    >>> is_by_class({"dog": {"v1": 0}}), is_by_class({"v1:dog": {"class_name": "dog", "embedding": 0}})
    (True, False)
    """
    return bool(embeddings) and all(
        isinstance(one, Mapping) and ":" not in str(name) and not any(value in one for value in VALUES)
        for name, one in embeddings.items()
    )


def flat(by_class: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return rows by ``file_id:class``, of a mapping by class."""
    return {f"{file_id}:{name.lower()}": row for name, rows in by_class.items() for file_id, row in rows.items()}


def counts(keys: Iterable[str], by_class: Collection[str]) -> dict[str, int]:
    """Return the number of keys of each class."""
    found = dict.fromkeys(by_class, 0)
    for key in keys:
        found[split_text(key)[1]] += 1
    return found


def read_chunks(folder: Path) -> Entries:
    """Read the caches of all classes below a folder. Rows stay mapped from their files.

    Rows that the manifest names and that are not there are in `Entries.unreadable`.

    Raises
    ------
    FileFormatError
        The folder has no such cache, or a manifest is broken.
    """
    found = Entries()
    for file_id, class_name, row in manifest_rows(folder):
        if isinstance(row, Unreadable):
            found.unreadable.append(row)
        else:
            found.add(f"{file_id}:{class_name.lower()}", row)
    return found

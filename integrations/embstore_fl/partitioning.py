"""Assigns samples to clients by the partitioners of flwr-datasets. `datasets` is imported on the first call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, overload

import numpy as np

from embstore import Key, View
from embstore._engine.format.keys import UNLABELLED
from embstore._engine.lazy import imported
from embstore_fl.errors import PartitionerError
from embstore_fl.partitions import NamedParts

_ROW: Final = "row"
_IN_ORDER: Final = ("IidPartitioner", "SizePartitioner", "IdToSizeFncPartitioner")


@overload
def partition(
    samples: View, partitioner: Any, *, columns: Sequence[str] = (), seed: int | None = 0
) -> NamedParts[View]: ...


@overload
def partition(samples: Sequence[str | Key], partitioner: Any, *, seed: int | None = 0) -> NamedParts[list[str]]: ...


def partition(
    samples: View | Sequence[str | Key], partitioner: Any, *, columns: Sequence[str] = (), seed: int | None = 0
) -> NamedParts[View] | NamedParts[list[str]]:
    """Assign samples to clients by any partitioner of `flwr_datasets` that assigns rows.

    The partitioner gets a table with the columns ``key``, ``file_id``, ``class_name``, ``label`` (the index of the
    class among the sorted classes, -1 without a class) and ``row``, and the columns in `columns`, but no vectors.
    Its ``partition_by`` names one of these columns.

    Parameters
    ----------
    samples : View or sequence of str or Key
        Rows of a store, or keys if nothing is encoded yet.
    partitioner : flwr_datasets.partitioner.Partitioner
        A new one, since a partitioner accepts one table only.
    columns : sequence of str
        Columns of the store for the partitioner, such as a speaker or a site.
    seed : int, optional
        Seed of a shuffle for partitioners that cut their table into contiguous slices (IID, by size). Without it, a
        store filled class by class is not divided evenly. Pass the manifest's seed, whose default is 0. None keeps
        the order.

    Returns
    -------
    dict of int to View, or to list of str
        Each client's part, in the order of `samples`. If the partitioner uses natural ids, its attribute `names`
        has the id of each client, and `save_partition` saves them.

    Raises
    ------
    PartitionerError
        The partitioner assigns columns, or adds rows.
    UnknownColumnError, KeyFormatError
    TypeError
        `columns` are given, and `samples` are keys.
    MissingLibraryError
    """
    datasets = imported("datasets", "flower", "for partitions")
    table = datasets.Dataset.from_dict(_table(samples, columns))
    if seed is not None and _cuts_stretches(partitioner):
        table = table.select(np.random.default_rng(seed).permutation(len(samples)))
    partitioner.dataset = table
    parts = {client: _rows(partitioner, client, len(samples)) for client in range(partitioner.num_partitions)}
    names = _natural_ids(partitioner)
    if isinstance(samples, View):
        return NamedParts({client: samples[rows] for client, rows in parts.items()}, names)
    keys = {client: [str(samples[row]) for row in rows.tolist()] for client, rows in parts.items()}
    return NamedParts(keys, names)


def _cuts_stretches(partitioner: Any) -> bool:
    """Return whether a partitioner cuts its table into contiguous slices.

    flwr-datasets 0.6 documents its `IidPartitioner` as random, but it takes contiguous shards.
    """
    return any(kind.__name__ in _IN_ORDER for kind in type(partitioner).__mro__)


def _natural_ids(partitioner: Any) -> dict[int, str]:
    """Return the natural id of each part, or its ids joined by "+". Empty for other partitioners."""
    found = getattr(partitioner, "partition_id_to_natural_id", {})
    groups = getattr(partitioner, "partition_id_to_natural_ids", {})
    return {client: str(name) for client, name in found.items()} | {
        client: "+".join(map(str, names)) for client, names in groups.items()
    }


def _table(samples: View | Sequence[str | Key], columns: Sequence[str]) -> dict[str, Any]:
    """Return the partitioner's table as columns."""
    keys = samples.keys if isinstance(samples, View) else samples
    parsed = [Key.parse(key) for key in keys]
    classes = sorted({key.class_name for key in parsed} - {UNLABELLED})
    places = {name: place for place, name in enumerate(classes)}
    table: dict[str, Any] = {
        "key": [str(key) for key in parsed],
        "file_id": [key.file_id for key in parsed],
        "class_name": [key.class_name for key in parsed],
        "label": [places.get(key.class_name, -1) for key in parsed],
        _ROW: np.arange(len(parsed)),
    }
    for name in columns:
        if name in table:
            raise ValueError(f"columns={name!r} conflicts with the built-in column of this name; rename the store's")
        if not isinstance(samples, View):
            raise TypeError(f"keys have no column {name!r}: pass a view")
        table[name] = samples.column(name)
    return table


def _rows(partitioner: Any, client: int, count: int) -> np.ndarray[Any, Any]:
    """Return the rows of a client's part, ascending. The order in a part has no meaning, that of a view may."""
    part, name = partitioner.load_partition(client), type(partitioner).__name__
    if _ROW not in part.column_names:
        raise PartitionerError(name, "it assigns columns, not rows; use a partitioner that assigns rows")
    rows = np.asarray(part.select_columns([_ROW]).with_format("numpy")[:][_ROW], dtype=np.int64)
    if len(rows) and not 0 <= rows.min() <= rows.max() < count:
        raise PartitionerError(name, f"it returned rows outside the {count:,} samples")
    return np.sort(rows)

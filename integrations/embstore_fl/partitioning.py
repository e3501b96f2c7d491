"""Samples shared out among clients by the partitioners of flwr-datasets. Imports `datasets` when it is called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, overload

import numpy as np

from embstore import Key, View
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
    """Share samples out among clients, by any partitioner of `flwr_datasets` that shares out rows.

    The partitioner gets a table with the columns ``key``, ``file_id``, ``class_name``, ``label`` (the class's place
    among the sorted ones) and ``row``, and those that are asked for; vectors it never sees. Its ``partition_by``
    names one of them.

    Parameters
    ----------
    samples : View or sequence of str or Key
        Rows of a store; or keys, where the clients are to be known before anything is encoded.
    partitioner : flwr_datasets.partitioner.Partitioner
        A fresh one: it takes one table in its life.
    columns : sequence of str
        Of the store, for partitioners that go by them: a speaker, a site.
    seed : int, optional
        Of the order in which samples are given to a partitioner that cuts its table into stretches (IID, by size): a
        store that was filled class by class would not be shared out evenly. Give the manifest's seed, which is 0
        unless another is given there. None keeps the order.

    Returns
    -------
    dict of int to View, or to list of str
        Each client's part, in the order of `samples`. Of a partitioner that goes by natural ids, `names` has the id
        of each client, and `save_partition` writes them down.

    Raises
    ------
    PartitionerError
        It shares out columns, or makes rows of its own.
    UnknownColumnError, KeyFormatError
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
    """Tell whether a partitioner cuts its table into stretches, in the table's order.

    flwr-datasets 0.6 documents its `IidPartitioner` as random, and takes contiguous shards.
    """
    return any(kind.__name__ in _IN_ORDER for kind in type(partitioner).__mro__)


def _natural_ids(partitioner: Any) -> dict[int, str]:
    """Return the natural id of each part, of a group of ids all of them; nothing for other partitioners."""
    found = getattr(partitioner, "partition_id_to_natural_id", {})
    groups = getattr(partitioner, "partition_id_to_natural_ids", {})
    return {client: str(name) for client, name in found.items()} | {
        client: "+".join(map(str, names)) for client, names in groups.items()
    }


def _table(samples: View | Sequence[str | Key], columns: Sequence[str]) -> dict[str, Any]:
    """Return what a partitioner may go by, by column."""
    keys = samples.keys if isinstance(samples, View) else samples
    parsed = [Key.parse(key) for key in keys]
    classes = sorted({key.class_name for key in parsed})
    places = {name: place for place, name in enumerate(classes)}
    table: dict[str, Any] = {
        "key": [str(key) for key in parsed],
        "file_id": [key.file_id for key in parsed],
        "class_name": [key.class_name for key in parsed],
        "label": [places[key.class_name] for key in parsed],
        _ROW: np.arange(len(parsed)),
    }
    for name in columns:
        if name in table:
            raise ValueError(f"{name!r} is a column of every table: the store's own of that name can't be in it too")
        if not isinstance(samples, View):
            raise TypeError(f"keys have no column {name!r}: give a view")
        table[name] = samples.column(name)
    return table


def _rows(partitioner: Any, client: int, count: int) -> np.ndarray[Any, Any]:
    """Return the rows of a client's part, ascending; the order in a part means nothing, and that of a view may."""
    part, name = partitioner.load_partition(client), type(partitioner).__name__
    if _ROW not in part.column_names:
        raise PartitionerError(name, "it shares out columns, not rows")
    rows = np.asarray(part.select_columns([_ROW]).with_format("numpy")[:][_ROW], dtype=np.int64)
    if len(rows) and not 0 <= rows.min() <= rows.max() < count:
        raise PartitionerError(name, f"it made rows that are none of the {count:,}")
    return np.sort(rows)

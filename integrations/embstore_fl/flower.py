"""The store in Flower: a partitioner's parts as views, a client's own inside its ``ClientApp``, a server's tests.

Nothing of Flower is imported: a partitioner and a context are used as they come. `partition` imports `datasets`, which
every partitioner needs, and what gives datasets torch. The file in between is `manifest`'s, what is in it
`partitions`'.

An app finds its part by these names, in ``context.node_config`` where a machine has its own, else in
``context.run_config``:

``embstore.store``
    Path of the store (or its URL).
``embstore.manifest``
    Path of the file that `save_partition` wrote.
``embstore.test``
    The share of each client's rows that is for testing; 0.25 without it.
``embstore.seed``
    Of that choice; the manifest's without it.

The client's number is ``context.node_config["partition-id"]``.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, overload

import numpy as np

from embstore import Key, View
from embstore import open as open_store
from embstore._engine.io.remote import is_url
from embstore._engine.lazy import imported
from embstore.errors import StoreReplacedError
from embstore_fl.errors import PartitionerError, RunConfigError
from embstore_fl.partitions import (
    TEST,
    ClientCoverage,
    Coverage,
    Partitions,
    Split,
    coverage,
    load_partition,
    save_partition,
)

if TYPE_CHECKING:
    from embstore.torch import EmbeddingDataset

__all__ = [
    "ClientCoverage",
    "Coverage",
    "Partitions",
    "client_dataset",
    "client_keys",
    "client_view",
    "coverage",
    "load_partition",
    "partition",
    "save_partition",
    "server_dataset",
    "server_keys",
    "server_view",
]

logger = logging.getLogger("embstore")

STORE: Final = "embstore.store"
MANIFEST: Final = "embstore.manifest"
TEST_SHARE: Final = "embstore.test"
SEED: Final = "embstore.seed"
PARTITION_ID: Final = "partition-id"
NUM_PARTITIONS: Final = "num-partitions"

_ROW: Final = "row"


class Context(Protocol):
    """What is needed of a `flwr.app.Context`."""

    @property
    def node_config(self) -> Mapping[str, Any]:
        """What the node was started with."""

    @property
    def run_config(self) -> Mapping[str, Any]:
        """What the app is configured with."""


# -- before the run: who has what --------------------------------------------------------------


@overload
def partition(samples: View, partitioner: Any, *, columns: Sequence[str] = ()) -> dict[int, View]: ...


@overload
def partition(samples: Sequence[str | Key], partitioner: Any) -> dict[int, list[str]]: ...


def partition(
    samples: View | Sequence[str | Key], partitioner: Any, *, columns: Sequence[str] = ()
) -> dict[int, View] | dict[int, list[str]]:
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

    Returns
    -------
    dict of int to View, or to list of str
        Each client's part, in the order of `samples`.

    Raises
    ------
    PartitionerError
        It shares out columns, or makes rows of its own.
    UnknownColumnError, KeyFormatError
    MissingLibraryError
    """
    datasets = imported("datasets", "flower", "for partitions")
    partitioner.dataset = datasets.Dataset.from_dict(_table(samples, columns))
    parts = {client: _rows(partitioner, client, len(samples)) for client in range(partitioner.num_partitions)}
    if isinstance(samples, View):
        return {client: samples[rows] for client, rows in parts.items()}
    return {client: [str(samples[row]) for row in rows.tolist()] for client, rows in parts.items()}


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


# -- in the run: a client's own part -----------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """A store and a manifest as this process has opened them, and what tells them from those that took their place."""

    partitions: Partitions
    generation: str
    signature: tuple[int, int, int]


_opened: dict[tuple[int, str, str], _Opened] = {}  # by process (a forked one opens its own), store and manifest


def _setting(context: Context, name: str, default: Any = None) -> Any:
    """Return what a name is set to: for the machine, else for the run."""
    return context.node_config.get(name, context.run_config.get(name, default))


def _path(context: Context, name: str) -> str:
    found = _setting(context, name)
    if not found:  # an app's pyproject.toml has to name what may be set, and then sets it to nothing
        raise RunConfigError(
            name,
            "run_config",
            context.run_config,
            hint="set it in the app's pyproject.toml under [tool.flwr.app.config], or by flwr run --run-config",
        )
    return str(found) if is_url(found) else str(Path(found).expanduser())


def _client(context: Context) -> int:
    if PARTITION_ID not in context.node_config:
        raise RunConfigError(
            PARTITION_ID,
            "node_config",
            context.node_config,
            hint="start the SuperNode with --node-config 'partition-id=…'; a simulation sets it by itself",
        )
    return int(context.node_config[PARTITION_ID])


def _partitions(context: Context) -> Partitions:
    """Return the context's partitions, opened once a process, on the store's newest commit."""
    store, manifest = _path(context, STORE), _path(context, MANIFEST)
    found = os.stat(manifest)
    signature = found.st_ino, found.st_size, found.st_mtime_ns
    known = (os.getpid(), store, manifest)
    opened = _opened.get(known)
    if opened is not None and opened.signature == signature:
        with contextlib.suppress(StoreReplacedError):  # another store is there by now, and has to fit the manifest
            opened.partitions.store.refresh()
            if opened.partitions.store.snapshot.record.generation == opened.generation:
                return opened.partitions
    partitions = load_partition(manifest, open_store(store))
    # A simulation of fewer nodes than there are clients runs without a word, on a part of the data.
    nodes = context.node_config.get(NUM_PARTITIONS)
    if nodes is not None and int(nodes) < len(partitions):
        logger.warning("%s has %d clients, the run %s: not all data is used", manifest, len(partitions), nodes)
    generation = partitions.store.snapshot.record.generation
    _opened[known] = _Opened(partitions=partitions, generation=generation, signature=signature)
    return partitions


def _share(context: Context) -> dict[str, Any]:
    seed = _setting(context, SEED)
    return {"test": float(_setting(context, TEST_SHARE, TEST)), "seed": None if seed is None else int(seed)}


def client_keys(context: Context, split: Split = "train") -> list[str]:
    """Return the keys of the client whose context it is, stored or not, in the manifest's order.

    Parameters
    ----------
    context : flwr.app.Context
    split : {"train", "test", "all"}

    Raises
    ------
    RunConfigError, UnknownClientError, OtherStoreManifestError, FileFormatError, NotAStoreError
    """
    return _partitions(context).keys_of(_client(context), split, **_share(context))


def client_view(context: Context, split: Split = "train", *, keys: Sequence[str | Key] | None = None) -> View:
    """Return the rows of the client whose context it is, in the manifest's order.

    Store and manifest are opened once a process. Which rows are for testing follows from keys and seed alone (see
    `Partitions.view`), so it is the same in each round and on each machine.

    Parameters
    ----------
    context : flwr.app.Context
        See the names above.
    split : {"train", "test", "all"}
    keys : sequence of str or Key, optional
        Only these of them, in this order.

    Raises
    ------
    ForeignKeysError
        Some of `keys` are not this client's, or not of this split.
    MissingKeysError
        Some of the client's keys are not stored: it lists all of them.
    RunConfigError, UnknownClientError, OtherStoreManifestError, FileFormatError, NotAStoreError
    """
    return _partitions(context).view(_client(context), split, keys=keys, **_share(context))


def client_dataset(
    context: Context, split: Split = "train", classes: Sequence[str] | None = None, **options: Any
) -> EmbeddingDataset:
    """Return the samples of the client whose context it is, for a `torch.utils.data.DataLoader`.

    Parameters
    ----------
    context : flwr.app.Context
    split : {"train", "test", "all"}
    classes : sequence of str, optional
        What labels are places in; the manifest's, which are the same for all clients, unless given.
    **options
        For `EmbeddingDataset`: `fields`, `columns`, `dtype`.

    Returns
    -------
    EmbeddingDataset
        Pickled, it is where the store is, and row numbers.

    Raises
    ------
    UnknownClassError
        A row's class is not in `classes`.
    MissingKeysError
        Some of the client's keys are not stored: it lists all of them.
    RunConfigError, UnknownClientError, OtherStoreManifestError, FileFormatError, NotAStoreError
    """
    return _dataset(context, client_view(context, split), classes, options)


def _dataset(
    context: Context, view: View, classes: Sequence[str] | None, options: Mapping[str, Any]
) -> EmbeddingDataset:
    from embstore.torch import EmbeddingDataset

    return EmbeddingDataset(view, classes=_partitions(context).classes if classes is None else classes, **options)


# -- in the run: what a server may see -----------------------------------------------------------


def server_keys(context: Context, split: Split = "test") -> list[str]:
    """Return the keys of all clients, one client's after the other's, each once, stored or not.

    Raises
    ------
    RunConfigError, OtherStoreManifestError, FileFormatError, NotAStoreError
    """
    return _partitions(context).keys_of(None, split, **_share(context))


def server_view(context: Context, split: Split = "test") -> View:
    """Return the rows of all clients, one client's after the other's, each once; see `server_dataset`.

    Raises
    ------
    MissingKeysError
        Some of the keys are not stored: it lists all of them.
    RunConfigError, OtherStoreManifestError, FileFormatError, NotAStoreError
    """
    return _partitions(context).view(None, split, **_share(context))


def server_dataset(
    context: Context, split: Split = "test", classes: Sequence[str] | None = None, **options: Any
) -> EmbeddingDataset:
    """Return samples of all clients, for a server that tests the model itself (``evaluate_fn`` of a strategy).

    They are those that the clients hold out by themselves, and a server that tests them saves a message to each client
    and round. It needs the store, or one of the same config with these rows, and a manifest that has all clients.

    Parameters
    ----------
    context : flwr.app.Context
        Of the ``ServerApp``. The names in ``run_config`` are the clients'.
    split : {"train", "test", "all"}
    classes : sequence of str, optional
        What labels are places in; the manifest's, unless given.
    **options
        For `EmbeddingDataset`: `fields`, `columns`, `dtype`.

    Returns
    -------
    EmbeddingDataset

    Raises
    ------
    UnknownClassError
        A row's class is not in `classes`.
    MissingKeysError
        Some of the keys are not stored: it lists all of them.
    RunConfigError, OtherStoreManifestError, FileFormatError, NotAStoreError
    """
    return _dataset(context, server_view(context, split), classes, options)

"""The store in Flower: a partitioner's parts as views, a client's own inside its ``ClientApp``, a server's tests.

Nothing of Flower is imported: a partitioner and a context are used as they come. Samples are shared out in
`partitioning`, the file in between is `manifest`'s, what is in it `partitions`'.

An app finds its part by these names, in ``context.node_config`` where a machine has its own, else in
``context.run_config``:

``embstore.store``
    Path of the store (or its URL).
``embstore.manifest``
    Path of the file that `save_partition` wrote.
``embstore.test``
    The share of each client's rows that is for testing; 0.25 without it. An error where the manifest has a test set.
``embstore.seed``
    Of that choice; the manifest's without it.

The client's number, or its name, is ``context.node_config["partition-id"]``.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from embstore import Key, View
from embstore import open as open_store
from embstore._engine.io.remote import is_url
from embstore.errors import StoreReplacedError
from embstore_fl.errors import ClassOrderError, ClientRowsError, ManifestNotFoundError, RunConfigError
from embstore_fl.partitioning import partition
from embstore_fl.partitions import ClientCoverage, Coverage, Partitions, Split, coverage, load_partition, save_partition

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


class Context(Protocol):
    """What is needed of a `flwr.app.Context`."""

    @property
    def node_config(self) -> Mapping[str, Any]:
        """What the node was started with."""

    @property
    def run_config(self) -> Mapping[str, Any]:
        """What the app is configured with."""


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


def _client(context: Context) -> int | str:
    if PARTITION_ID not in context.node_config:
        raise RunConfigError(
            PARTITION_ID,
            "node_config",
            context.node_config,
            hint="start the SuperNode with --node-config 'partition-id=…'; a simulation sets it by itself",
        )
    found = context.node_config[PARTITION_ID]
    try:
        return int(found)
    except ValueError:  # a name
        return str(found)


def _partitions(context: Context) -> Partitions:
    """Return the context's partitions, opened once a process, on the store's newest commit."""
    store, manifest = _path(context, STORE), _path(context, MANIFEST)
    try:
        found = os.stat(manifest)
    except FileNotFoundError as error:
        raise ManifestNotFoundError(Path(manifest)) from error
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
    if opened is not None and opened.generation == generation:
        before = opened.partitions.classes
        if partitions.classes[: len(before)] != before:  # a model that is trained already would be given other labels
            raise ClassOrderError(Path(manifest), expected=before, found=partitions.classes)
    _opened[known] = _Opened(partitions=partitions, generation=generation, signature=signature)
    return partitions


def _share(context: Context) -> dict[str, Any]:
    test, seed = _setting(context, TEST_SHARE), _setting(context, SEED)
    return {"test": None if test in (None, "") else float(test), "seed": None if seed in (None, "") else int(seed)}


def client_keys(context: Context, split: Split = "train") -> list[str]:
    """Return the keys of the client whose context it is, stored or not, in the manifest's order.

    Parameters
    ----------
    context : flwr.app.Context
    split : {"train", "test", "all"}

    Raises
    ------
    RunConfigError, UnknownClientError, OtherStoreManifestError, GivenTestError
    ManifestNotFoundError, FileFormatError, NotAStoreError
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
    RunConfigError, UnknownClientError, OtherStoreManifestError, GivenTestError
    ManifestNotFoundError, FileFormatError, NotAStoreError
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
    ClientRowsError
        The client has no row in this part. `client_view` returns an empty view.
    UnknownClassError
        A row's class is not in `classes`.
    MissingKeysError
        Some of the client's keys are not stored: it lists all of them.
    RunConfigError, UnknownClientError, OtherStoreManifestError, GivenTestError
    ManifestNotFoundError, FileFormatError, NotAStoreError
    """
    view = client_view(context, split)
    if not len(view):
        raise ClientRowsError(_client(context), 0, part=split)
    return _dataset(context, view, classes, options)


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
    RunConfigError, OtherStoreManifestError, GivenTestError, ManifestNotFoundError, FileFormatError, NotAStoreError
    """
    return _partitions(context).keys_of(None, split, **_share(context))


def server_view(context: Context, split: Split = "test") -> View:
    """Return the rows of all clients, one client's after the other's, each once; see `server_dataset`.

    Raises
    ------
    MissingKeysError
        Some of the keys are not stored: it lists all of them.
    RunConfigError, OtherStoreManifestError, GivenTestError, ManifestNotFoundError, FileFormatError, NotAStoreError
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
    RunConfigError, OtherStoreManifestError, GivenTestError, ManifestNotFoundError, FileFormatError, NotAStoreError
    """
    return _dataset(context, server_view(context, split), classes, options)

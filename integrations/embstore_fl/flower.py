"""Flower adapter: data sets for a ``ClientApp`` and a ``ServerApp``, and parts made by a Flower partitioner.

Flower is not imported. Partitioners and contexts are used through their attributes. `partitioning` assigns samples to
clients, `partitions` saves and loads the parts, and `manifest` is their file.

An app sets these names in ``context.run_config``. The same name in ``context.node_config`` has precedence, for a
machine with its own value:

``embstore.store``
    Path or URL of the store.
``embstore.manifest``
    Path of the file that `save_partition` wrote.
``embstore.test``
    Share of each client's rows for testing. Default: 0.25. Not allowed if the manifest has a test set.
``embstore.seed``
    Seed of the choice of these rows. Default: the manifest's.

The client's number or name is ``context.node_config["partition-id"]``.
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
from embstore._engine.io.urls import is_url
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
    """The attributes of a `flwr.app.Context` that are used here."""

    @property
    def node_config(self) -> Mapping[str, Any]:
        """Configuration of the node."""

    @property
    def run_config(self) -> Mapping[str, Any]:
        """Configuration of the run."""


# -- in the run: a client's own part -----------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """An open store and manifest, with the generation and the signature that show a replacement."""

    partitions: Partitions
    generation: str
    signature: tuple[int, int, int]


_opened: dict[tuple[int, str, str], _Opened] = {}  # by process (a fork opens its own), store and manifest


def _setting(context: Context, name: str, default: Any = None) -> Any:
    """Return the value of a name in the node's configuration, else in the run's."""
    return context.node_config.get(name, context.run_config.get(name, default))


def _path(context: Context, name: str) -> str:
    found = _setting(context, name)
    if not found:  # an app's pyproject.toml must declare each name, so an unset one is an empty text
        raise RunConfigError(
            name,
            "run_config",
            [name for name, value in context.run_config.items() if value not in (None, "")],
            hint="set it in the app's pyproject.toml under [tool.flwr.app.config], or by flwr run --run-config",
        )
    return str(found) if is_url(found) else str(Path(found).expanduser())


def _client(context: Context) -> int | str:
    if PARTITION_ID not in context.node_config:
        raise RunConfigError(
            PARTITION_ID,
            "node_config",
            context.node_config,
            hint="start the SuperNode with --node-config 'partition-id=…'; simulations set it automatically",
        )
    found = context.node_config[PARTITION_ID]
    try:
        return int(found)
    except ValueError:  # a name
        return str(found)


def _partitions(context: Context) -> Partitions:
    """Return the context's partitions at the store's newest commit. They are opened once a process."""
    store, manifest = _path(context, STORE), _path(context, MANIFEST)
    try:
        found = os.stat(manifest)
    except FileNotFoundError as error:
        raise ManifestNotFoundError(Path(manifest)) from error
    signature = found.st_ino, found.st_size, found.st_mtime_ns
    known = (os.getpid(), store, manifest)
    opened = _opened.get(known)
    if opened is not None and opened.signature == signature:
        with contextlib.suppress(StoreReplacedError):  # open the new store, which must fit the manifest
            opened.partitions.store.refresh()
            if opened.partitions.store.snapshot.record.generation == opened.generation:
                return opened.partitions
    partitions = load_partition(manifest, open_store(store))
    # A simulation with fewer nodes than clients silently uses a part of the data.
    nodes = context.node_config.get(NUM_PARTITIONS)
    if nodes is not None and int(nodes) < len(partitions):
        logger.warning("%s has %d clients, the run %s: not all data is used", manifest, len(partitions), nodes)
    generation = partitions.store.snapshot.record.generation
    if opened is not None and opened.generation == generation:
        before = opened.partitions.classes
        if partitions.classes[: len(before)] != before:  # the labels of a model in training would change
            raise ClassOrderError(Path(manifest), expected=before, found=partitions.classes)
    _opened[known] = _Opened(partitions=partitions, generation=generation, signature=signature)
    return partitions


def _share(context: Context) -> dict[str, Any]:
    test, seed = _setting(context, TEST_SHARE), _setting(context, SEED)
    return {"test": None if test in (None, "") else float(test), "seed": None if seed in (None, "") else int(seed)}


def client_keys(context: Context, split: Split = "train") -> list[str]:
    """Return the keys of the context's client, stored or not, in the manifest's order.

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
    """Return the rows of the context's client, in the manifest's order.

    Store and manifest are opened once a process. The keys and the seed alone decide the rows for testing (see
    `Partitions.view`), so the split is the same in each round and on each machine.

    Parameters
    ----------
    context : flwr.app.Context
        With the names in the module's docstring.
    split : {"train", "test", "all"}
    keys : sequence of str or Key, optional
        Return only these rows, in this order.

    Raises
    ------
    ForeignKeysError
        Some of `keys` are not in this split of the client.
    MissingKeysError
        Some of the client's keys are not stored. The error lists them.
    RunConfigError, UnknownClientError, OtherStoreManifestError, GivenTestError
    ManifestNotFoundError, FileFormatError, NotAStoreError
    """
    return _partitions(context).view(_client(context), split, keys=keys, **_share(context))


def client_dataset(
    context: Context, split: Split = "train", classes: Sequence[str] | None = None, **options: Any
) -> EmbeddingDataset:
    """Return the samples of the context's client, for a `torch.utils.data.DataLoader`.

    Parameters
    ----------
    context : flwr.app.Context
    split : {"train", "test", "all"}
    classes : sequence of str, optional
        Labels are indices into this list. Default: the manifest's classes, the same for all clients.
    **options
        Options of `EmbeddingDataset`: `fields`, `columns`, `dtype`.

    Returns
    -------
    EmbeddingDataset
        Its pickle holds the store's path and row numbers.

    Raises
    ------
    ClientRowsError
        The client has no row in this split. (`client_view` returns an empty view.)
    UnknownClassError
        A row's class is not in `classes`.
    MissingKeysError
        Some of the client's keys are not stored. The error lists them.
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


# -- in the run: a server's part ---------------------------------------------------------------


def server_keys(context: Context, split: Split = "test") -> list[str]:
    """Return the keys of all clients, client by client, each key once, stored or not.

    Raises
    ------
    RunConfigError, OtherStoreManifestError, GivenTestError, ManifestNotFoundError, FileFormatError, NotAStoreError
    """
    return _partitions(context).keys_of(None, split, **_share(context))


def server_view(context: Context, split: Split = "test") -> View:
    """Return the rows of all clients, client by client, each row once. See `server_dataset`.

    Raises
    ------
    MissingKeysError
        Some of the keys are not stored. The error lists them.
    RunConfigError, OtherStoreManifestError, GivenTestError, ManifestNotFoundError, FileFormatError, NotAStoreError
    """
    return _partitions(context).view(None, split, **_share(context))


def server_dataset(
    context: Context, split: Split = "test", classes: Sequence[str] | None = None, **options: Any
) -> EmbeddingDataset:
    """Return samples of all clients, for a server that tests the model itself (``evaluate_fn`` of a strategy).

    These are the rows that the clients hold out. A test at the server saves a message to each client and round. It
    needs a manifest with all clients, and the store or another one of the same config with these rows.

    Parameters
    ----------
    context : flwr.app.Context
        Context of the ``ServerApp``, with the same names in ``run_config`` as the clients.
    split : {"train", "test", "all"}
    classes : sequence of str, optional
        Labels are indices into this list. Default: the manifest's classes.
    **options
        Options of `EmbeddingDataset`: `fields`, `columns`, `dtype`.

    Returns
    -------
    EmbeddingDataset

    Raises
    ------
    UnknownClassError
        A row's class is not in `classes`.
    MissingKeysError
        Some of the keys are not stored. The error lists them.
    RunConfigError, OtherStoreManifestError, GivenTestError, ManifestNotFoundError, FileFormatError, NotAStoreError
    """
    return _dataset(context, server_view(context, split), classes, options)

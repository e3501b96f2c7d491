"""PFLlib adapter: replaces `read_client_data` of its ``utils.data_utils``, which reads ``.npz`` files, by a store.

`install` splits the clients' rows, and replaces the function before ``flcore`` binds the old one. `holdout` splits the
rows, and `clientdata` has a client's samples. Written against PFLlib at commit d832e76.
"""

from __future__ import annotations

import importlib
import math
import operator
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsIndex, cast

import numpy as np
from numpy.typing import NDArray

from embstore import EmbeddingStore, Key, View
from embstore._engine.format.keys import hash_file_ids
from embstore.errors import ShapeError, UnknownClassError
from embstore_fl.client_views import TEST, Partitions
from embstore_fl.clientdata import ClientData
from embstore_fl.errors import (
    ClientClassesError,
    ClientRowsError,
    FlcoreImportedError,
    GivenTestError,
    OtherStoreError,
    PFLlibNotFoundError,
    UnknownClientError,
    UnknownDatasetError,
)
from embstore_fl.holdout import Held, held_out, ranks_of

__all__ = ["Installed", "install", "read_client_data"]

Partition = View | Sequence[int] | Sequence[str] | Sequence[Key] | NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """Result of `install`.

    Attributes
    ----------
    dataset : str or None
        PFLlib's name of the data set. None matches every name.
    classes : tuple of str
        A label is an index into it.
    feature_dim : int
        Numbers in a row: the input size of a model's head.
    train, test : dict of int to ClientData
        By the client's number.
    names : tuple of str
        Names of clients that were given by name. A client's number is its index. Empty otherwise.
    """

    dataset: str | None
    classes: tuple[str, ...]
    feature_dim: int
    train: Mapping[int, ClientData]
    test: Mapping[int, ClientData]
    names: tuple[str, ...] = ()
    _few: dict[tuple[int, int], ClientData] = field(default_factory=dict, repr=False)

    @property
    def num_classes(self) -> int:
        """Number of labels: the output size of a model's head."""
        return len(self.classes)

    @property
    def num_clients(self) -> int:
        """Number of clients."""
        return len(self.train)

    def read(self, idx: SupportsIndex | str, is_train: bool = True, few_shot: int = 0) -> ClientData:
        """Return a client's samples. See `read_client_data`."""
        part = self.train if is_train else self.test
        client = self._number(idx)
        if client not in part:
            raise UnknownClientError(idx, self.names or part)
        if not is_train or few_shot <= 0:
            return part[client]
        if (client, few_shot) not in self._few:
            self._few[client, few_shot] = part[client].first_of_each(few_shot)
        return self._few[client, few_shot]

    def _number(self, idx: SupportsIndex | str) -> int:
        if isinstance(idx, str):
            return self.names.index(idx) if idx in self.names else -1
        return operator.index(idx)


_installed: dict[str | None, Installed] = {}  # by the data set's name, or the single key None for every name


def read_client_data(
    dataset: str, idx: SupportsIndex | str, is_train: bool = True, few_shot: int = 0
) -> Sequence[tuple[Any, Any]]:
    """Return a client's samples. Replaces PFLlib's function of this name.

    No row is read here. The same call returns the same sequence, which reads a sample on access.

    Parameters
    ----------
    dataset : str
        The name that was passed to `install`. Any name if none was passed.
    idx : int or str
        The client's number or name.
    is_train : bool
        True for training rows, False for test rows.
    few_shot : int
        Return only this many training rows of each label, the first ones. 0 for all.

    Returns
    -------
    ClientData
        Samples ``(x, y)``, float32 and int64.

    Raises
    ------
    UnknownDatasetError, UnknownClientError
    """
    found = _installed.get(dataset, _installed.get(None))
    if found is None:
        raise UnknownDatasetError(dataset, [name for name in _installed if name is not None])
    return found.read(idx, is_train, few_shot)


def install(
    store: EmbeddingStore,
    partitions: Mapping[int, Partition] | Mapping[str, Partition] | Partitions | Sequence[Partition],
    classes: Sequence[str],
    test: float | Partition | None = None,
    seed: int | None = None,
    *,
    dataset: str | None = None,
    field: str | None = None,
) -> Installed:
    """Replace `read_client_data` in PFLlib's ``utils.data_utils``. Call it before ``flcore`` is imported.

    Parameters
    ----------
    store : EmbeddingStore
    partitions : mapping of int or str, or sequence
        Each client's view, row numbers or keys. PFLlib numbers its clients: a named client's number is its position.
    classes : sequence of str
        Labels are indices into this list, the same for all clients.
    test : float, view, row numbers or keys, optional
        A float is the share of each client's rows, and of each of its classes, for testing. The keys and the seed
        decide the rows (see `holdout`), so each call returns the same. No row is for testing in one client and for
        training in another. Anything else is a given test set, such as the official one: a client is tested on its
        own rows of it. If no client has any of them, each client is tested on the whole set. Default: the test set
        of the partitions' manifest, or else 0.25.
    seed : int, optional
        Default: the seed of the partitions' manifest, or else 0.
    dataset : str, optional
        PFLlib's name of the data set, required for several installations. Default: every name. An installation of
        the same name, or of every name, is replaced.
    field : str, optional
        Default: the store's primary field.

    Returns
    -------
    Installed
        Its `feature_dim` and `num_classes` are the sizes of the model's head.

    Raises
    ------
    FlcoreImportedError, PFLlibNotFoundError
    ClientClassesError, ClientRowsError, OtherStoreError
    GivenTestError
        `test` is given, and the partitions' manifest has a test set.
    ShapeError
        The field is ragged. PFLlib's models take rows of one shape.
    UnknownFieldError, MissingKeysError, IndexError
    ValueError
        `test` is not between 0 and 1.
    """
    if imported := sorted(name for name in sys.modules if name.partition(".")[0] == "flcore"):
        raise FlcoreImportedError(imported)
    data_utils = _data_utils()
    name = store.field_name(field)
    spec = store.fields[name]
    if spec.ragged:
        raise ShapeError(name, expected="rows of one shape, as PFLlib's models take", found="a ragged field")
    if isinstance(partitions, Partitions):
        given = partitions.manifest.test_keys()
        if given is not None and test is not None:
            raise GivenTestError(partitions.manifest.where, test)
        test = given if test is None else test
        seed = partitions.seed if seed is None else seed
    train, tested = _split(store, partitions, classes, name, TEST if test is None else test, seed or 0)
    names = tuple(client for client, _ in _clients(partitions).values() if isinstance(client, str))
    found = Installed(
        dataset=dataset,
        classes=tuple(classes),
        feature_dim=math.prod(spec.shape),
        train=train,
        test=tested,
        names=names,
    )
    if dataset is None:
        _installed.clear()
    _installed.pop(None, None)
    _installed[dataset] = found
    data_utils.read_client_data = read_client_data
    return found


def _data_utils() -> Any:
    """Import PFLlib's ``utils.data_utils``."""
    try:
        module = importlib.import_module("utils.data_utils")
    except ModuleNotFoundError as error:
        raise PFLlibNotFoundError(str(error)) from error
    if not hasattr(module, "read_client_data"):
        raise PFLlibNotFoundError(f"{module.__file__} has no read_client_data")
    return module


Datas = dict[int, ClientData]


def _split(
    store: EmbeddingStore,
    partitions: Mapping[Any, Partition] | Sequence[Partition],
    classes: Sequence[str],
    name: str,
    test: float | Partition,
    seed: int,
) -> tuple[Datas, Datas]:
    """Return the training and the test samples of each client."""
    clients = _clients(partitions)
    whole = {number: _whole(store, client, part, classes, name) for number, (client, part) in clients.items()}
    called = {number: client for number, (client, _) in clients.items()}
    given = None
    if isinstance(test, float | int):
        chosen = _by_share(whole, called, test, seed)
    else:
        given = _whole(store, "(test set)", test, classes, name)
        chosen = {number: np.isin(data.view.rows, given.view.rows) for number, data in whole.items()}
    train = {number: data.at(~chosen[number]) for number, data in whole.items()}
    if given is not None and not any(mask.any() for mask in chosen.values()):
        tested = dict.fromkeys(whole, given)  # no client has a row of the test set, so each is tested on all of it
    else:
        tested = {number: data.at(chosen[number]) for number, data in whole.items()}
    for part, parts in (("train", train), ("test", tested)):
        for number, data in parts.items():
            if not len(data):  # a shuffling DataLoader raises for an empty data set
                raise ClientRowsError(called[number], 0, part=part)
    return train, tested


def _clients(partitions: Mapping[Any, Partition] | Sequence[Partition]) -> dict[int, tuple[int | str, Partition]]:
    """Return each client's number or name and its part, by number. A named client's number is its position."""
    if not isinstance(partitions, Mapping):
        return {number: (number, part) for number, part in enumerate(partitions)}
    if partitions and all(isinstance(client, str) for client in partitions):
        return {number: (client, part) for number, (client, part) in enumerate(partitions.items())}
    return {(number := operator.index(client)): (number, part) for client, part in partitions.items()}


def _whole(store: EmbeddingStore, client: int | str, part: Partition, classes: Sequence[str], name: str) -> ClientData:
    """Return all samples of a client."""
    view = _view(store, client, part)
    try:
        return ClientData(view, view.labels(classes), name)
    except UnknownClassError as error:
        raise ClientClassesError(error.class_names, classes, client=client, hint=error.hint) from error


def _by_share(
    whole: Datas, clients: Mapping[int, int | str], test: float, seed: int
) -> Mapping[int, NDArray[np.bool_]]:
    """Return where each client's rows are for testing, by a share of them."""
    if not 0 < test < 1:
        raise ValueError(f"expected test, a share, above 0 and below 1, found {test}")
    held: dict[int, Held] = {}
    for number, data in whole.items():
        if (count := len(np.unique(data.view.rows))) < 2:
            raise ClientRowsError(clients[number], count)
        ranks = ranks_of(hash_file_ids(data.view.snapshot().file_ids_of(data.view.rows)), seed)
        held[number] = Held(rows=data.view.rows, labels=data.labels, ranks=ranks)
    return held_out(held, test)


def _view(store: EmbeddingStore, client: int | str, partition: Partition) -> View:
    """Return a client's rows as a view of the store."""
    if isinstance(partition, View):
        expected, found = store.snapshot.record.generation, partition.snapshot().record.generation
        if found != expected:
            raise OtherStoreError(client, expected=store.path, found=partition.store.path)
        return partition
    if len(partition) and isinstance(partition[0], str | Key):
        return store.select(keys=cast("Sequence[str | Key]", partition))
    rows = np.asarray(partition if len(partition) else np.empty(0, np.int64))
    if rows.ndim != 1 or rows.dtype.kind not in "iu":  # a mask would be read as rows 0 and 1
        raise TypeError(f"client {client}: expected a view, row numbers or keys, found {rows.dtype} {rows.shape}")
    return store.select(rows=rows)

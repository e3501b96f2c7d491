"""PFLlib on a store: `read_client_data` of its ``utils.data_utils``, with nothing to read from an ``.npz``.

`install` splits the clients' rows, and puts the function in place before ``flcore`` binds the old one. How rows are
split is `holdout`'s, what a client gets is `clientdata`'s. Written against PFLlib at commit d832e76.
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
    """What `install` has put in place.

    Attributes
    ----------
    dataset : str or None
        The name that it answers to; None for every name.
    classes : tuple of str
        A label is a place in it.
    feature_dim : int
        Numbers in a row: what a model's head takes.
    train, test : dict of int to ClientData
        By the client's number.
    names : tuple of str
        Of clients that were given by name: a client's number is its place. Empty otherwise.
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
        """Labels that there are: what a model's head gives."""
        return len(self.classes)

    @property
    def num_clients(self) -> int:
        """Clients that there are."""
        return len(self.train)

    def read(self, idx: SupportsIndex | str, is_train: bool = True, few_shot: int = 0) -> ClientData:
        """Return a client's samples; see `read_client_data`."""
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


_installed: dict[str | None, Installed] = {}  # by the name of the data set; under None alone, for every name


def read_client_data(
    dataset: str, idx: SupportsIndex | str, is_train: bool = True, few_shot: int = 0
) -> Sequence[tuple[Any, Any]]:
    """Return a client's samples, as PFLlib's function of this name does.

    Nothing is read or made here: the same call returns the same sequence, which reads a sample when it is asked
    for it.

    Parameters
    ----------
    dataset : str
        The name that was given to `install`; any, if none was.
    idx : int or str
        The client's number, or its name.
    is_train : bool
        Whether the rows to train on, or those to test.
    few_shot : int
        Of the rows to train on, only the first so many of each label; all for 0.

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
    """Put `read_client_data` in place in PFLlib's ``utils.data_utils``, before ``flcore`` is imported.

    Parameters
    ----------
    store : EmbeddingStore
    partitions : mapping of int or str, or sequence
        What each client holds: a view, row numbers or keys. PFLlib numbers its clients: with names, a client's number
        is its place.
    classes : sequence of str
        Gives the labels: a class's place in this list, the same for all clients.
    test : float, view, row numbers or keys, optional
        A share of each client's rows, and of each of its classes, that is for testing; the same for each call
        with this seed, since it follows from the rows' keys (see `holdout`). A row that two clients hold is never
        one's for testing and the other's to train on. Or a given test set, such as the official one: a client is
        tested on its own rows of it; if no client has any of them, each client is tested on the whole set. By default
        the test set of the partitions' manifest, or else 0.25.
    seed : int, optional
        By default that of the partitions' manifest, or else 0.
    dataset : str, optional
        The name that PFLlib will ask for, needed where several are installed; answers to any, unless given. One
        that is installed under the same name gives way, and so does one without a name.
    field : str, optional
        The store's only one, unless given.

    Returns
    -------
    Installed
        Has `feature_dim` and `num_classes`, for the model's head.

    Raises
    ------
    FlcoreImportedError, PFLlibNotFoundError
    ClientClassesError, ClientRowsError, OtherStoreError
    GivenTestError
        `test` is given, and the partitions' manifest has a test set.
    ShapeError
        The field is ragged: PFLlib's models take rows of one shape.
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
    """Import the module of PFLlib that has the function."""
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
    """Return what each client trains on, and what it is tested on."""
    clients = _clients(partitions)
    whole = {number: _whole(store, client, part, classes, name) for number, (client, part) in clients.items()}
    called = {number: client for number, (client, _) in clients.items()}
    if isinstance(test, float | int):
        train, tested = _by_share(whole, called, test, seed)
    else:
        train, tested = _by_test_set(whole, _whole(store, "(test set)", test, classes, name))
    for part, parts in (("train", train), ("test", tested)):
        for number, data in parts.items():
            if not len(data):  # a DataLoader that shuffles takes no data set without samples
                raise ClientRowsError(called[number], 0, part=part)
    return train, tested


def _clients(partitions: Mapping[Any, Partition] | Sequence[Partition]) -> dict[int, tuple[int | str, Partition]]:
    """Return what each client holds, and what it is called, by its number: a name's number is its place."""
    if not isinstance(partitions, Mapping):
        return {number: (number, part) for number, part in enumerate(partitions)}
    if partitions and all(isinstance(client, str) for client in partitions):
        return {number: (client, part) for number, (client, part) in enumerate(partitions.items())}
    return {(number := operator.index(client)): (number, part) for client, part in partitions.items()}


def _whole(store: EmbeddingStore, client: int | str, part: Partition, classes: Sequence[str], name: str) -> ClientData:
    """Return all that a client holds, with its labels."""
    view = _view(store, client, part)
    try:
        return ClientData(view, view.labels(classes), name)
    except UnknownClassError as error:
        raise ClientClassesError(error.class_names, classes, client=client) from error


def _by_share(whole: Datas, clients: Mapping[int, int | str], test: float, seed: int) -> tuple[Datas, Datas]:
    """Return what each client trains on, and the share of its rows that it is tested on."""
    if not 0 < test < 1:
        raise ValueError(f"expected test, a share, above 0 and below 1, found {test}")
    held: dict[int, Held] = {}
    for number, data in whole.items():
        if (count := len(np.unique(data.view.rows))) < 2:
            raise ClientRowsError(clients[number], count)
        ranks = ranks_of(data.view.snapshot().take("key_hash", data.view.rows), seed)
        held[number] = Held(rows=data.view.rows, labels=data.labels, ranks=ranks)
    chosen = held_out(held, test)
    train = {number: data.at(~chosen[number]) for number, data in whole.items()}
    return train, {number: data.at(chosen[number]) for number, data in whole.items()}


def _by_test_set(whole: Datas, tested: ClientData) -> tuple[Datas, Datas]:
    """Return what each client trains on, and the rows of a given test set that it is tested on."""
    chosen = {number: np.isin(data.view.rows, tested.view.rows) for number, data in whole.items()}
    if not any(mask.any() for mask in chosen.values()):
        return whole, dict.fromkeys(whole, tested)
    train = {number: data.at(~chosen[number]) for number, data in whole.items()}
    return train, {number: data.at(chosen[number]) for number, data in whole.items()}


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
    if rows.ndim != 1 or rows.dtype.kind not in "iu":  # a mask would be taken for rows 0 and 1
        raise TypeError(f"client {client}: expected a view, row numbers or keys, found {rows.dtype} {rows.shape}")
    return store.select(rows=rows)

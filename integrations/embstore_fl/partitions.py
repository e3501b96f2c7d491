"""The clients' parts of a store, by their keys: views, what is missing of them, and what is held out for testing.

What is in the file they come from is `manifest`'s, which rows are held out `holdout`'s. Nothing here knows Flower.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from embstore import EmbeddingStore, Key, View
from embstore._engine.format.keys import hash_keys
from embstore_fl.errors import ForeignKeysError
from embstore_fl.holdout import Held, held_out, ranks_of
from embstore_fl.manifest import Manifest, Scheme

__all__ = [
    "ClientCoverage",
    "Coverage",
    "Partitions",
    "Split",
    "coverage",
    "load_partition",
    "save_partition",
]

Split = Literal["train", "test", "all"]

TEST = 0.25
"""The share of each client's rows that is for testing, unless another is asked for."""


class Partitions(Mapping[int, View]):
    """Each client's view of a store, by its number. Made by `load_partition`.

    A view is made when it is asked for, of the store's newest commit that this process knows; it is an error while some
    of the client's keys are not stored, and `coverage` says which. Another client's rows are not to be had through it.

    Parameters
    ----------
    manifest : Manifest
    store : EmbeddingStore
        Of the manifest's config.

    Raises
    ------
    OtherStoreManifestError
    """

    def __init__(self, manifest: Manifest, store: EmbeddingStore) -> None:
        manifest.check_store(store.snapshot.record.config, store.path)
        self.manifest = manifest
        self.store = store
        self._keys: dict[tuple[int | None, Split, float, int], list[str]] = {}
        self._views: dict[tuple[int | None, Split, float, int], tuple[str, View]] = {}

    @property
    def classes(self) -> list[str]:
        """The classes of all clients: a label is a place in it, the same for each of them."""
        return list(self.manifest.classes)

    def __len__(self) -> int:
        return len(self.manifest.parts)

    def __iter__(self) -> Iterator[int]:
        return iter(self.manifest.parts)

    def __contains__(self, client: object) -> bool:
        return client in self.manifest.parts

    def __getitem__(self, client: int) -> View:
        """Return all rows of a client, in the manifest's order.

        Raises
        ------
        UnknownClientError
        MissingKeysError
            Lists the client's keys that are not stored.
        """
        return self.view(client)

    def keys_of(
        self, client: int | None, split: Split = "all", *, test: float = TEST, seed: int | None = None
    ) -> list[str]:
        """Return a client's keys, stored or not; see `view`."""
        return list(self._keys_of(client, split, test, self._seed(seed)))

    def view(
        self,
        client: int | None,
        split: Split = "all",
        *,
        test: float = TEST,
        seed: int | None = None,
        keys: Sequence[str | Key] | None = None,
    ) -> View:
        """Return a client's rows, in the manifest's order.

        Which of them are for testing follows from their keys and the seed: it is the same in each round, on each
        machine, and in `embstore_fl.pfllib`. No row is one client's for testing and another's to train on.

        Parameters
        ----------
        client : int or None
            None for all of them, one client's rows after the other's, each row once: for whoever may see them.
        split : {"train", "test", "all"}
        test : float
            The share of the client's rows, and of each of its classes, that is for testing; from 0, below 1.
        seed : int, optional
            The manifest's, unless given.
        keys : sequence of str or Key, optional
            Only these of them, in this order.

        Raises
        ------
        UnknownClientError
        ForeignKeysError
            Some of `keys` are not among them.
        MissingKeysError
            Lists those of the client's keys that are not stored.
        """
        known = (client, split, test, self._seed(seed))
        if keys is not None:
            wanted = [str(Key.parse(key)) for key in keys]
            own = set(self._keys_of(*known))
            if foreign := [key for key in wanted if key not in own]:
                raise ForeignKeysError(client, foreign)
            return self.store.select(keys=wanted)
        commit = self.store.snapshot.record.commit_id
        found = self._views.get(known)
        # Only of the same commit: a row that was replaced since has another number.
        if found is None or found[0] != commit:
            found = self._views[known] = commit, self.store.select(keys=self._keys_of(*known))
        return found[1]

    def _seed(self, seed: int | None) -> int:
        return seed if seed is not None else self.manifest.seed or 0

    def _keys_of(self, client: int | None, split: Split, test: float, seed: int) -> list[str]:
        if split not in get_args(Split):
            raise ValueError(f"expected a split of {get_args(Split)}, found {split!r}")
        if not 0 <= test < 1:
            raise ValueError(f"expected test, a share, from 0 and below 1, found {test}")
        known = (client, split, test, seed)
        if known not in self._keys:
            if client is None:
                every = (self._own(one, split, test, seed) for one in self)
                self._keys[known] = list(dict.fromkeys(key for keys in every for key in keys))
            else:
                self._keys[known] = self._own(client, split, test, seed)
        return self._keys[known]

    def _own(self, client: int, split: Split, test: float, seed: int) -> list[str]:
        """Return the keys of one client."""
        keys = self.manifest.keys_of(client)
        if split == "all":
            return keys
        held = self._held_out(client, keys, test, seed)
        return [key for key, is_test in zip(keys, held, strict=True) if is_test == (split == "test")]

    def _held_out(self, client: int, keys: list[str], test: float, seed: int) -> list[bool]:
        if not test or not keys:
            return [False] * len(keys)
        # Where clients share keys, one must know of the others which it holds out.
        parts = {other: self.manifest.keys_of(other) for other in self.manifest.parts} if self.manifest.shared else {}
        numbers: dict[str, int] = {}
        held = {other: _held(part, numbers, seed) for other, part in {**parts, client: keys}.items() if part}
        chosen: list[bool] = held_out(held, test)[client].tolist()
        return chosen

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the manifest, and where the store is."""
        return Partitions, (self.manifest, self.store)

    def __repr__(self) -> str:
        total = sum(self.manifest.sizes.values())
        return f"<Partitions of {str(self.store.path)!r}: {len(self):,} clients, {total:,} keys>"


def _held(keys: list[str], numbers: dict[str, int], seed: int) -> Held:
    """Describe what a client holds; `numbers` gives each different key one number, whoever holds it."""
    codes: dict[str, int] = {}
    labels = [codes.setdefault(key.rpartition(":")[2], len(codes)) for key in keys]
    rows = [numbers.setdefault(key, len(numbers)) for key in keys]
    return Held(rows=_ints(rows), labels=_ints(labels), ranks=ranks_of(hash_keys(keys), seed))


def _ints(values: list[int]) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


# -- the manifest ------------------------------------------------------------------------------

Parts = Mapping[int, View | Sequence[str]] | Sequence[View | Sequence[str]]


def _numbered(partitions: Parts) -> dict[int, View | Sequence[str]]:
    return dict(partitions if isinstance(partitions, Mapping) else enumerate(partitions))


def save_partition(
    partitions: Parts,
    file: str | os.PathLike[str],
    *,
    scheme: Scheme,
    seed: int | None = None,
    config: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
) -> Manifest:
    """Write down which client has which samples, in a file that outlives rows and machines.

    Parameters
    ----------
    partitions : mapping of int, or sequence, of View or keys
        What `partition` returns. A part of it is enough for a machine that is to know its own clients alone.
    file : path_like
        Written whole and durably; one that is there is replaced.
    scheme : str or mapping
        How the samples were shared out, for whoever reads it: ``"Dirichlet, alpha 0.5"``, or anything that JSON holds.
    seed : int, optional
        Of that; also of each client's split into train and test, unless another is given there.
    config : mapping, optional
        Of the store: needed where there are only keys, before anything is encoded.
    classes : sequence of str, optional
        What labels are places in; the classes of all keys, sorted, unless given. Needed where `partitions` is a part.

    Returns
    -------
    Manifest

    Raises
    ------
    OtherStoreManifestError
        Views are of stores with different configs.
    KeyFormatError, ReadOnlyError, StorageFullError
    """
    keys: dict[int, Sequence[str]] = {}
    for client, part in _numbered(partitions).items():
        keys[client] = part.keys if isinstance(part, View) else part
        if isinstance(part, View) and config is None:
            config = part.store.config
    if config is None:
        raise TypeError("keys alone don't say of which store they are: give its config")
    manifest = Manifest.of(keys, scheme=scheme, seed=seed, config=config, classes=classes)
    for part in _numbered(partitions).values():
        if isinstance(part, View):
            manifest.check_store(part.store.config, part.store.path)
    manifest.write(file)
    return manifest


def load_partition(file: str | os.PathLike[str], store: EmbeddingStore) -> Partitions:
    """Return each client's view of a store, as a manifest has it.

    The store may be another one than that which it was made of, as long as it has the same config: on another machine,
    compacted, or not filled yet.

    Parameters
    ----------
    file : path_like
        Written by `save_partition`.
    store : EmbeddingStore

    Returns
    -------
    Partitions
        A mapping of numbers to views.

    Raises
    ------
    OtherStoreManifestError
        The store has another config; says in what it differs.
    FileFormatError, UnsupportedFormatError, FileNotFoundError
    """
    return Partitions(Manifest.read(file), store)


# -- before round 1 ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCoverage:
    """How much of a client's part is stored.

    Attributes
    ----------
    client : int
    wanted : int
        Keys that the client has.
    missing : tuple of str
        Those that are not stored.

    Examples
    --------
    >>> print(ClientCoverage(client=7, wanted=340, missing=("a:dog", "b:dog")))
    client 7: 2 of 340 missing
    """

    client: int
    wanted: int
    missing: tuple[str, ...]

    def __str__(self) -> str:
        return f"client {self.client}: {len(self.missing):,} of {self.wanted:,} missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """How much of each client's part is stored. As text, a line for each client that lacks something.

    Attributes
    ----------
    clients : tuple of ClientCoverage
    """

    clients: tuple[ClientCoverage, ...]

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return not any(client.missing for client in self.clients)

    @property
    def missing(self) -> dict[int, tuple[str, ...]]:
        """The keys that are not stored, of each client that has such."""
        return {client.client: client.missing for client in self.clients if client.missing}

    def __str__(self) -> str:
        wanted = sum(client.wanted for client in self.clients)
        lacking = [client for client in self.clients if client.missing]
        if not lacking:
            return f"{len(self.clients):,} clients: all of their {wanted:,} samples are stored"
        missing = sum(len(client.missing) for client in lacking)
        first = f"{len(lacking):,} of {len(self.clients):,} clients: {missing:,} of {wanted:,} samples missing"
        return "\n".join([first, *map(str, lacking)])


def coverage(partitions: Parts | Partitions | Manifest, store: EmbeddingStore | None = None) -> Coverage:
    """Say what of each client's part is stored, before the first round.

    Parameters
    ----------
    partitions : Partitions, Manifest, or mapping or sequence of View or keys
    store : EmbeddingStore, optional
        Where to look; that of the partitions, unless given. It is moved on to its newest commit.

    Returns
    -------
    Coverage

    Raises
    ------
    OtherStoreManifestError
    TypeError
        There is no store to look in.
    """
    if isinstance(partitions, Manifest):
        if store is None:
            raise TypeError("a manifest does not say where its store lies: give it")
        partitions = Partitions(partitions, store)
    if isinstance(partitions, Partitions):
        store = store or partitions.store
        partitions.manifest.check_store(store.snapshot.record.config, store.path)
        parts: dict[int, View | Sequence[str]] = {client: partitions.keys_of(client) for client in partitions}
    else:
        parts = _numbered(partitions)
    found = []
    for client, part in parts.items():
        place = store if store is not None else part.store if isinstance(part, View) else None
        if place is None:
            raise TypeError(f"the keys of client {client} don't say where they are stored: give the store")
        place.refresh()
        keys = part.keys if isinstance(part, View) else list(part)
        found.append(ClientCoverage(client=client, wanted=len(keys), missing=tuple(place.missing(keys))))
    return Coverage(clients=tuple(found))

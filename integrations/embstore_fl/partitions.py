"""The clients' parts of a store, by their keys: written down, read as views, and what of them is missing.

The views are `client_views`', the file is `manifest`'s. Nothing here knows Flower.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from embstore import Config, EmbeddingStore, Key, View
from embstore_fl.client_views import Partitions, Split
from embstore_fl.errors import ManifestNotFoundError
from embstore_fl.manifest import Client, Manifest, Scheme

__all__ = [
    "ClientCoverage",
    "Coverage",
    "Partitions",
    "Split",
    "coverage",
    "load_partition",
    "save_partition",
]

V = TypeVar("V", bound="View | list[str]")


class NamedParts(dict[int, V]):
    """Each client's part by its number, and the names of clients that have one."""

    def __init__(self, parts: Mapping[int, V], names: Mapping[int, str]) -> None:
        super().__init__(parts)
        self.names = dict(names)


# -- the manifest ------------------------------------------------------------------------------

Part = View | Sequence[str]
Parts = Mapping[int, Part] | Mapping[str, Part] | Mapping[Client, View] | Sequence[Part]


def _by_client(partitions: Parts) -> dict[Client, Part]:
    return dict(partitions.items() if isinstance(partitions, Mapping) else enumerate(partitions))


def save_partition(
    partitions: Parts,
    file: str | os.PathLike[str],
    *,
    scheme: Scheme,
    seed: int | None = None,
    config: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    names: Mapping[int, str] | None = None,
    test: View | Iterable[str | Key] | None = None,
) -> Manifest:
    """Write down which client has which samples, in a file that outlives rows and machines.

    Parameters
    ----------
    partitions : mapping of int or str, or sequence, of View or keys
        What `partition` returns, or each client's part by a name such as "site-1". A part of it is enough for a
        machine that is to know its own clients alone. What `load_partition` returns keeps its classes, names, test
        set and seed.
    file : path_like
        Written whole and durably; one that is there is replaced.
    scheme : str or mapping
        How the samples were shared out, for whoever reads it: ``"Dirichlet, alpha 0.5"``, or anything that JSON holds.
    seed : int, optional
        Of that; also of each client's split into train and test, unless another is given there.
    config : mapping, optional
        Of the store: needed where there are only keys, before anything is encoded.
    classes : sequence of str, optional
        What labels are places in. By default the classes of all keys, sorted; if the file is there and of the same
        config, its classes keep their places, and new ones follow. Needed where `partitions` is a part.
    names : mapping of int to str, optional
        Names of clients that have a number; those of natural ids, unless given.
    test : View, or keys, optional
        A given test set, such as the official one: it takes the place of a share of each client's rows.

    Returns
    -------
    Manifest

    Raises
    ------
    OtherStoreManifestError
        Views are of stores with different configs.
    FileFormatError, UnsupportedFormatError
        The file is there, and is no manifest.
    KeyFormatError, ReadOnlyError, StorageFullError
    """
    parts = _by_client(partitions)
    if isinstance(partitions, Partitions):
        before = partitions.manifest
        seed = before.seed if seed is None else seed
        classes = before.classes if classes is None else classes
        test = before.test_keys() if test is None else test
    if names is None:
        names = partitions.names if isinstance(partitions, Partitions | NamedParts) else {}
    views = [part for part in (*parts.values(), test) if isinstance(part, View)]
    if config is None:
        if not views:
            raise TypeError("keys alone don't say of which store they are: give its config")
        config = views[0].store.config
    manifest = Manifest.of(
        {client: part.keys if isinstance(part, View) else part for client, part in parts.items()},  # type: ignore[arg-type]
        scheme=scheme,
        seed=seed,
        config=config,
        classes=classes,
        first=_classes_before(file, config) if classes is None else (),
        names=names,
        test=test.keys if isinstance(test, View) else test,
    )
    for view in views:
        manifest.check_store(view.store.config, view.store.path)
    manifest.write(file)
    return manifest


def _classes_before(file: str | os.PathLike[str], config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the classes of the manifest that is replaced: in the middle of a run, labels must not move."""
    try:
        before = Manifest.read(file)
    except ManifestNotFoundError:
        return ()
    return before.classes if before.fingerprint == Config(config).fingerprint else ()


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
        A mapping of numbers or names to views.

    Raises
    ------
    OtherStoreManifestError
        The store has another config; says in what it differs.
    ManifestNotFoundError, FileFormatError, UnsupportedFormatError
    """
    return Partitions(Manifest.read(file), store)


# -- before round 1 ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCoverage:
    """How much of a client's part is stored.

    Attributes
    ----------
    client : int or str
    wanted : int
        Keys that the client has.
    missing : tuple of str
        Those that are not stored.

    Examples
    --------
    >>> print(ClientCoverage(client=7, wanted=340, missing=("a:dog", "b:dog")))
    client 7: 2 of 340 missing
    """

    client: Client
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
    def missing(self) -> dict[Client, tuple[str, ...]]:
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

    A test set that no client has a key of is no client's part.

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
        parts: dict[Client, Part] = {client: partitions.keys_of(client) for client in partitions}
    else:
        parts = _by_client(partitions)
    found = []
    for client, part in parts.items():
        place = store if store is not None else part.store if isinstance(part, View) else None
        if place is None:
            raise TypeError(f"the keys of client {client} don't say where they are stored: give the store")
        place.refresh()
        keys = part.keys if isinstance(part, View) else list(part)
        found.append(ClientCoverage(client=client, wanted=len(keys), missing=tuple(place.missing(keys))))
    return Coverage(clients=tuple(found))

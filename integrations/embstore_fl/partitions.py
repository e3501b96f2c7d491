"""Saves and loads the clients' parts of a store by their keys, and reports missing keys.

`client_views` has the views, `manifest` the file. Independent of Flower.
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
    """Each client's part by number, with `names` of clients by number."""

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
    """Save each client's keys in a file that stays valid after compactions and on other machines.

    Parameters
    ----------
    partitions : mapping of int or str, or sequence, of View or keys
        The parts that `partition` returned, or each client's part by a name such as "site-1". A machine that must not
        know other clients gets its own clients only. Classes, names, test set and seed of a `Partitions` are kept.
    file : path_like
        Written atomically and durably. An existing file is replaced.
    scheme : str or mapping
        Description of the assignment for readers: ``"Dirichlet, alpha 0.5"``, or a JSON value.
    seed : int, optional
        Seed of the scheme, and default seed of each client's split into train and test.
    config : mapping, optional
        The store's config. Required if there are only keys and no view.
    classes : sequence of str, optional
        Labels are indices into this list. Default: the classes of all keys, sorted. If the file exists and has the
        same config, its classes keep their labels, and new ones follow. Required if `partitions` is a part.
    names : mapping of int to str, optional
        Names of clients with a number. Default: their natural ids.
    test : View, or keys, optional
        A given test set, such as the official one. It replaces the share of each client's rows.

    Returns
    -------
    Manifest

    Raises
    ------
    OtherStoreManifestError
        The views are of stores with different configs.
    FileFormatError, UnsupportedFormatError
        The file exists, and is not a manifest.
    TypeError
        There are only keys, and no config.
    ValueError
        See `Manifest.of`.
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
            raise TypeError("expected config=, as keys without a view do not identify a store")
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
    """Return the classes of the manifest that is replaced. Labels must not change during a run."""
    try:
        before = Manifest.read(file)
    except ManifestNotFoundError:
        return ()
    return before.classes if before.fingerprint == Config(config).fingerprint else ()


def load_partition(file: str | os.PathLike[str], store: EmbeddingStore) -> Partitions:
    """Load each client's view of a store from a manifest.

    Any store with the same config fits: on another machine, compacted, or not filled yet.

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
        The store has another config. The message lists the differences.
    ManifestNotFoundError, FileFormatError, UnsupportedFormatError
    """
    return Partitions(Manifest.read(file), store)


# -- before round 1 ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCoverage:
    """Coverage of one client's part.

    Attributes
    ----------
    client : int or str
    wanted : int
        Number of the client's keys.
    missing : tuple of str
        Keys that are not stored.

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
    """Coverage of all clients' parts. Its text has a line for each client with missing keys.

    Attributes
    ----------
    clients : tuple of ClientCoverage
    """

    clients: tuple[ClientCoverage, ...]

    @property
    def complete(self) -> bool:
        """Whether no key is missing."""
        return not any(client.missing for client in self.clients)

    @property
    def missing(self) -> dict[Client, tuple[str, ...]]:
        """Missing keys by client, for clients with missing keys."""
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
    """Return the stored and missing keys of each client, to check before the first round.

    A test set without any client's keys is not counted.

    Parameters
    ----------
    partitions : Partitions, Manifest, or mapping or sequence of View or keys
    store : EmbeddingStore, optional
        Store to search, refreshed first. Default: the partitions' own.

    Returns
    -------
    Coverage

    Raises
    ------
    OtherStoreManifestError
    TypeError
        `store` is missing, and `partitions` has no store.
    """
    if isinstance(partitions, Manifest):
        if store is None:
            raise TypeError("expected store=, as a manifest has no path of a store")
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
            raise TypeError(f"expected store=, as the keys of client {client} have no store")
        place.refresh()
        keys = part.keys if isinstance(part, View) else list(part)
        found.append(ClientCoverage(client=client, wanted=len(keys), missing=tuple(place.missing(keys))))
    return Coverage(clients=tuple(found))

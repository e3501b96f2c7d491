"""Errors of `embstore_fl`, chosen by what the caller should do next; see `embstore.errors` for the others.

::

    EmbstoreError
    |-- it is not there: look elsewhere, or make it
    |   |-- UnknownClientError (KeyError)           no partition of that number
    |   |-- ForeignKeysError (KeyError)             keys of another client, or of nobody
    |   |-- RunConfigError (KeyError)               a Flower context without a name that is needed
    |   |-- ClientClassesError (KeyError)           a client's class that has no label
    |   `-- PFLlibNotFoundError (ImportError)       PFLlib is not on the path
    |-- it is another one than you think: compare, or make a new one
    |   |-- OtherStoreManifestError (ValueError)    a manifest of another store
    |   `-- OtherStoreError (ValueError)            a client's view of another store
    `-- the call is wrong: change it
        |-- FlcoreImportedError (RuntimeError)      too late: PFLlib has its own function already
        |-- ClientRowsError (ValueError)            a client with less than two rows
        |-- PartitionerError (ValueError)           a partitioner that does not share out rows
        |-- UnknownDatasetError (KeyError)          a data set that is not known by that name
        |-- UnknownSplitError (KeyError)            a split or a fold that the data set does not have
        |-- RatiosError (ValueError)                ratios of splits that do not sum to 1
        |-- NodeError (ValueError)                  num_nodes beside samples_per_node, or one of them alone
        |-- NodeRangeError (IndexError)             a node beyond the last one
        |-- DatasetLayoutError (ValueError)         files that are not laid out as the data set's are
        `-- SharedKeysError (ValueError)            keys to erase that another client has too
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from embstore.errors import EmbstoreError, UnknownClassError

__all__ = [
    "ClientClassesError",
    "ClientRowsError",
    "DatasetLayoutError",
    "FlcoreImportedError",
    "ForeignKeysError",
    "NodeError",
    "NodeRangeError",
    "OtherStoreError",
    "OtherStoreManifestError",
    "PFLlibNotFoundError",
    "PartitionerError",
    "RatiosError",
    "RunConfigError",
    "SharedKeysError",
    "UnknownClientError",
    "UnknownDatasetError",
    "UnknownSplitError",
]

_SHOWN = 10


def _listed(items: Sequence[object]) -> str:
    more = len(items) - _SHOWN
    return ", ".join(map(repr, items[:_SHOWN])) + (f" and {more:,} more" if more > 0 else "")


class UnknownClientError(EmbstoreError, KeyError):
    """A client without a partition. Attributes: `client`, `known`."""

    client: object
    known: tuple[int, ...]

    def __init__(self, client: object, known: Iterable[int]) -> None:
        numbers = tuple(known)
        super().__init__(
            f"there is no client {client!r}; there are {_listed(numbers) or 'none'}", client=client, known=numbers
        )


class ForeignKeysError(EmbstoreError, KeyError):
    """Keys that are not the client's own. Attributes: `client`, `keys`.

    Whose they are, it does not say: that is nothing for the client to know.
    """

    client: object
    keys: tuple[str, ...]

    def __init__(self, client: object, keys: Sequence[str]) -> None:
        super().__init__(
            f"{len(keys)} key(s) are not client {client}'s own: {_listed(keys)}", client=client, keys=tuple(keys)
        )


class RunConfigError(EmbstoreError, KeyError):
    """A Flower context without a name that is needed. Attributes: `name`, `place` (node_config, …), `available`."""

    name: str
    place: str
    available: tuple[str, ...]

    def __init__(self, name: str, place: str, available: Iterable[str], *, hint: str) -> None:
        names = tuple(available)
        super().__init__(
            f"{name!r} is not in context.{place}, which has {_listed(names) or 'nothing'}; {hint}",
            name=name,
            place=place,
            available=names,
        )


class OtherStoreManifestError(EmbstoreError, ValueError):
    """A manifest that was made for another store. Attributes: `path`, `store`, `expected`, `found`, `differences`.

    `expected` and `found` are fingerprints of configs, `differences` a tuple of `embstore.Difference`.
    """

    path: Path
    store: Path
    expected: str
    found: str
    differences: tuple[Any, ...]

    def __init__(self, path: Path, store: Path, *, expected: str, found: str, differences: Sequence[Any]) -> None:
        super().__init__(
            f"{path} is of another store than {store}: expected the fingerprint {expected}, found {found}; "
            f"the configs differ in {'; '.join(map(str, differences))}",
            path=path,
            store=store,
            expected=expected,
            found=found,
            differences=tuple(differences),
        )


class PartitionerError(EmbstoreError, ValueError):
    """A partitioner whose parts are not rows of what it was given. Attributes: `partitioner` (its name), `reason`."""

    partitioner: str
    reason: str

    def __init__(self, partitioner: str, reason: str) -> None:
        super().__init__(f"{partitioner}: {reason}", partitioner=partitioner, reason=reason)


class UnknownDatasetError(EmbstoreError, KeyError):
    """A data set that is not known by that name. Attributes: `name`, `known`."""

    name: str
    known: tuple[str, ...]

    def __init__(self, name: str, known: Iterable[str]) -> None:
        names = tuple(known)
        super().__init__(f"there is no data set {name!r}; there are {_listed(names)}", name=name, known=names)


class UnknownSplitError(EmbstoreError, KeyError):
    """A split or a fold that is not there. Attributes: `dataset`, `kind` ("split" or "fold"), `wanted`, `available`."""

    dataset: str
    kind: str
    wanted: object
    available: tuple[object, ...]

    def __init__(self, dataset: str, kind: str, wanted: object, available: Iterable[object]) -> None:
        found = tuple(available)
        super().__init__(
            f"{dataset} has no {kind} {wanted!r}; it has {_listed(found) or 'none'}",
            dataset=dataset,
            kind=kind,
            wanted=wanted,
            available=found,
        )


class RatiosError(EmbstoreError, ValueError):
    """Ratios of splits that are negative, or do not sum to 1. Attributes: `ratios`, `total`."""

    ratios: dict[str, float]
    total: float

    def __init__(self, ratios: dict[str, float]) -> None:
        total = sum(ratios.values())
        super().__init__(
            f"expected ratios from 0 that sum to 1, found {ratios}, which sum to {total:g}", ratios=ratios, total=total
        )


class NodeError(EmbstoreError, ValueError):
    """How samples are shared out to nodes, said twice or by half. Attributes: `given`, `reason`."""

    given: dict[str, Any]
    reason: str

    def __init__(self, given: dict[str, Any], reason: str) -> None:
        shown = ", ".join(f"{name}={value!r}" for name, value in given.items())
        super().__init__(f"{reason}; found {shown}", given=given, reason=reason)


class NodeRangeError(EmbstoreError, IndexError):
    """A node that gets no sample of any class, as there are not so many. Attributes: `node`, `nodes` (there are)."""

    node: int
    nodes: int | None

    def __init__(self, node: int, nodes: int | None, *, hint: str = "") -> None:
        last = "" if nodes is None else f" to {nodes - 1}"
        super().__init__(
            f"there is no node {node}: nodes go from 0{last}{'; ' if hint else ''}{hint}",
            node=node,
            nodes=nodes,
        )


class DatasetLayoutError(EmbstoreError, ValueError):
    """Files that are not laid out as the data set's are. Attributes: `path`, `reason`."""

    path: Path
    reason: str

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}", path=path, reason=reason)


class SharedKeysError(EmbstoreError, ValueError):
    """Keys to erase that another client has too; nothing was erased. Attribute: `keys`."""

    keys: tuple[str, ...]

    def __init__(self, keys: Sequence[str]) -> None:
        super().__init__(
            f"{len(keys)} of these keys belong to other clients too, and nothing was erased: {_listed(keys)}",
            keys=tuple(keys),
        )


class FlcoreImportedError(EmbstoreError, RuntimeError):
    """PFLlib's ``flcore`` has the old function already: install before it is imported. Attribute: `modules`."""

    modules: tuple[str, ...]

    def __init__(self, modules: Sequence[str]) -> None:
        super().__init__(
            f"{modules[0]} is imported already, so PFLlib goes on reading its .npz files: call install() before "
            f"anything of flcore is imported",
            modules=tuple(modules),
        )


class PFLlibNotFoundError(EmbstoreError, ImportError):
    """No PFLlib on the path: run in its folder ``system``. Attribute: `reason`."""

    reason: str

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}: PFLlib's folder 'system' must be on sys.path", reason=reason)


class ClientClassesError(UnknownClassError):
    """Classes of a client's rows that have no label. Attributes: `client`, `class_names`, `available`."""

    client: int

    def __init__(self, client: int, class_names: Iterable[str], available: Iterable[str]) -> None:
        super().__init__(class_names, available)
        self.message = f"client {client}: {self.message}; classes= must name the classes of all clients"
        self.client = self._facts["client"] = client


class ClientRowsError(EmbstoreError, ValueError):
    """A client with too few rows to train on one and be tested on another. Attributes: `client`, `found`."""

    client: int
    found: int

    def __init__(self, client: int, found: int) -> None:
        super().__init__(
            f"client {client} has {found} different rows; it needs two, one to train on and one to test",
            client=client,
            found=found,
        )


class OtherStoreError(EmbstoreError, ValueError):
    """A client's view is of another store. Attributes: `client`, `expected`, `found` (paths)."""

    client: int
    expected: Path
    found: Path

    def __init__(self, client: int, expected: Path, found: Path) -> None:
        super().__init__(
            f"client {client}: expected a view of {expected} as it is now, found one of {found}",
            client=client,
            expected=expected,
            found=found,
        )

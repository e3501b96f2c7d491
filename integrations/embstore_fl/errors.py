"""Errors of `embstore_fl`, chosen by what the caller should do next; see `embstore.errors` for the others.

::

    EmbstoreError
    |-- it is not there: look elsewhere, or make it
    |   |-- UnknownClientError (KeyError)           no partition of that number or name
    |   |-- ManifestNotFoundError (FileNotFoundError) no manifest at that path
    |   |-- ForeignKeysError (KeyError)             keys of another client, or of nobody
    |   |-- RunConfigError (KeyError)               a Flower context without a name that is needed
    |   |-- ClientClassesError (KeyError)           a client's class that has no label
    |   `-- PFLlibNotFoundError (ImportError)       PFLlib is not on the path
    |-- it is another one than you think: compare, or make a new one
    |   |-- OtherStoreManifestError (ValueError)    a manifest of another store
    |   |-- ClassOrderError (ValueError)            a replaced manifest that gives classes other labels
    |   `-- OtherStoreError (ValueError)            a client's view of another store
    `-- the call is wrong: change it
        |-- FlcoreImportedError (RuntimeError)      too late: PFLlib has its own function already
        |-- ClientRowsError (ValueError)            a client with less than two rows, or with none in a part
        |-- GivenTestError (ValueError)             a share for testing beside a given test set
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

from dataclasses import KW_ONLY
from pathlib import Path
from typing import Any

from embstore.errors import EmbstoreError, Items, UnknownClassError

__all__ = [
    "ClassOrderError",
    "ClientClassesError",
    "ClientRowsError",
    "DatasetLayoutError",
    "FlcoreImportedError",
    "ForeignKeysError",
    "GivenTestError",
    "ManifestNotFoundError",
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


class UnknownClientError(EmbstoreError, KeyError):
    """A client without a partition. Attributes: `client`, `known`."""

    client: object
    known: Items[int | str] = Items()
    template = "no client {client!r}; clients: {known:quoted}"


class ManifestNotFoundError(EmbstoreError, FileNotFoundError):
    """No manifest at a path. Attribute: `path`."""

    path: Path
    template = "{path}: no manifest; save_partition() writes one"


class ForeignKeysError(EmbstoreError, KeyError):
    """Keys that are not the client's own. Attributes: `client`, `keys`.

    Whose they are, it does not say: that is nothing for the client to know.
    """

    client: object
    keys: Items[str] = Items()
    template = "{keys:count} key(s) are not client {client}'s own: {keys:quoted}"


class RunConfigError(EmbstoreError, KeyError):
    """A Flower context without a needed name. Attributes: `name`, `place` (node_config, …), `available`, `hint`."""

    name: str
    place: str
    available: Items[str] = Items()
    _: KW_ONLY
    hint: str
    template = "{name!r} is not in context.{place}; names there: {available:quoted}; {hint}"


class OtherStoreManifestError(EmbstoreError, ValueError):
    """A manifest that was made for another store. Attributes: `path`, `store`, `expected`, `found`, `differences`.

    `expected` and `found` are fingerprints of configs, `differences` a tuple of `embstore.Difference`.
    """

    path: Path
    store: Path
    _: KW_ONLY
    expected: str
    found: str
    differences: Items[Any] = Items()
    template = (
        "{path} is of another store than {store}: expected the fingerprint {expected}, found {found}; "
        "the configs differ in {differences:; }"
    )


class ClassOrderError(EmbstoreError, ValueError):
    """A manifest was replaced by one that gives classes other labels. Attributes: `path`, `expected`, `found`."""

    path: Path
    _: KW_ONLY
    expected: Items[str] = Items()
    found: Items[str] = Items()
    template = (
        "{path} was replaced by a manifest with other labels: expected the classes {expected:quoted} first, found "
        "{found:quoted}; add new classes at the end, or start the process anew"
    )


class GivenTestError(EmbstoreError, ValueError):
    """A share of rows for testing, where the manifest has a test set. Attributes: `path`, `share`."""

    path: Path
    share: object
    template = "{path} has a test set, so no share of rows is for testing: found test={share!r}; leave it out"


class PartitionerError(EmbstoreError, ValueError):
    """A partitioner whose parts are not rows of what it was given. Attributes: `partitioner` (its name), `reason`."""

    partitioner: str
    reason: str
    template = "{partitioner}: {reason}"


class UnknownDatasetError(EmbstoreError, KeyError):
    """A data set that is not known by that name. Attributes: `name`, `known`."""

    name: str
    known: Items[str] = Items()
    template = "no data set {name!r}; data sets: {known:quoted}"


class UnknownSplitError(EmbstoreError, KeyError):
    """A split or a fold that is not there. Attributes: `dataset`, `kind` ("split" or "fold"), `wanted`, `available`."""

    dataset: str
    kind: str
    wanted: object
    available: Items[object] = Items()
    template = "{dataset} has no {kind} {wanted!r}; it has {available:quoted}"


class RatiosError(EmbstoreError, ValueError):
    """Ratios of splits that are negative, or do not sum to 1. Attributes: `ratios`, `total`."""

    ratios: dict[str, float]
    total: float
    template = "expected ratios from 0 that sum to 1, found {ratios}, which sum to {total:g}"


class NodeError(EmbstoreError, ValueError):
    """How samples are shared out to nodes, said twice or by half. Attributes: `given`, `reason`."""

    given: dict[str, Any]
    reason: str
    template = "{reason}; found {given}"


class NodeRangeError(EmbstoreError, IndexError):
    """A node that gets no sample of any class, as there are fewer. Attributes: `node`, `nodes` (there are), `hint`."""

    node: int
    nodes: int | None
    _: KW_ONLY
    hint: str = ""

    def _template(self) -> str:
        last = "" if self.nodes is None else f" to {self.nodes - 1}"
        return f"no node {{node}}: nodes go from 0{last}" + ("; {hint}" if self.hint else "")


class DatasetLayoutError(EmbstoreError, ValueError):
    """Files that are not laid out as the data set's are. Attributes: `path`, `reason`."""

    path: Path
    reason: str
    template = "{path}: {reason}"


class SharedKeysError(EmbstoreError, ValueError):
    """Keys to erase that another client has too; nothing was erased. Attribute: `keys`."""

    keys: Items[str] = Items()
    template = "{keys:count} of these keys belong to other clients too, and nothing was erased: {keys:quoted}"


class FlcoreImportedError(EmbstoreError, RuntimeError):
    """PFLlib's ``flcore`` has the old function already: install before it is imported. Attribute: `modules`."""

    modules: Items[str] = Items()
    template = (
        "already imported: {modules:, }. PFLlib would go on reading its .npz files: call install() before "
        "anything of flcore is imported"
    )


class PFLlibNotFoundError(EmbstoreError, ImportError):
    """No PFLlib on the path: run in its folder ``system``. Attribute: `reason`."""

    reason: str
    template = "{reason}: PFLlib's folder 'system' must be on sys.path"


class ClientClassesError(UnknownClassError):
    """Classes of a client's rows that have no label. Attributes: `client`, `class_names`, `available`."""

    _: KW_ONLY
    client: int | str
    template = f"client {{client}}: {UnknownClassError.template}; classes= must name the classes of all clients"


class ClientRowsError(EmbstoreError, ValueError):
    """A client with too few rows. Attributes: `client`, `found`, `part` ("train" or "test"; None for both)."""

    client: int | str
    found: int
    _: KW_ONLY
    part: str | None = None

    def _template(self) -> str:
        if self.part is None:
            return "client {client} has {found} different rows; it needs two, one to train on and one to test"
        return "client {client} has no row in its part {part!r}; give it more rows, or leave it out"


class OtherStoreError(EmbstoreError, ValueError):
    """A client's view is of another store. Attributes: `client`, `expected`, `found` (paths)."""

    client: int | str
    _: KW_ONLY
    expected: Path
    found: Path
    template = "client {client}: expected a view of {expected} as it is now, found one of {found}"

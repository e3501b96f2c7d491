"""Errors of `embstore_fl`, grouped by the caller's next step. See `embstore.errors` for the others.

::

    EmbstoreError
    |-- not found: look elsewhere, or make it
    |   |-- UnknownClientError (KeyError)           no client of that number or name
    |   |-- ManifestNotFoundError (FileNotFoundError) no manifest at that path
    |   |-- ForeignKeysError (KeyError)             keys that the client does not have
    |   |-- RunConfigError (KeyError)               a Flower context without a required name
    |   |-- ClientClassesError (KeyError)           a client's class without a label
    |   `-- PFLlibNotFoundError (ImportError)       PFLlib is not on the path
    |-- mismatch: compare, or make a new one
    |   |-- OtherStoreManifestError (ValueError)    a manifest of another store
    |   |-- ClassOrderError (ValueError)            a replaced manifest that gives classes other labels
    |   |-- ClipSettingsError (ValueError)          another sample rate or duration than the data set's clips have
    |   `-- OtherStoreError (ValueError)            a client's view of another store
    `-- wrong call: change it
        |-- FlcoreImportedError (RuntimeError)      install() after PFLlib's own function was imported
        |-- ClientRowsError (ValueError)            a client with fewer than two rows, or an empty part
        |-- GivenTestError (ValueError)             a test share beside a given test set
        |-- PartitionerError (ValueError)           a partitioner that does not assign rows
        |-- UnknownDatasetError (KeyError)          an unknown data set name
        |-- UnknownSplitError (KeyError)            a split or a fold that the data set does not have
        |-- RatiosError (ValueError)                ratios of splits that do not sum to 1
        |-- NodeError (ValueError)                  num_nodes beside samples_per_node, or a missing one
        |-- NodeRangeError (IndexError)             a node beyond the last one
        |-- DatasetLayoutError (ValueError)         files in another layout than the data set's
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
    "ClipSettingsError",
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

    The message does not name their owner, which the client must not learn.
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
    template = "{name!r} is not set in context.{place}; names set there: {available:quoted}; {hint}"


class OtherStoreManifestError(EmbstoreError, ValueError):
    """A manifest of another store. Attributes: `path`, `store`, `expected`, `found`, `differences`.

    `expected` and `found` are fingerprints of configs. `differences` is a tuple of `embstore.Difference`.
    """

    path: Path
    store: Path
    _: KW_ONLY
    expected: str
    found: str
    differences: Items[Any] = Items()
    template = (
        "{path} does not fit the store {store}: expected the fingerprint {expected}, found {found}; "
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
        "{found:quoted}; add new classes at the end, or restart the process"
    )


class ClipSettingsError(EmbstoreError, ValueError):
    """A sample rate or duration that is not the data set's. Attributes: `dataset`, `name`, `expected`, `found`."""

    dataset: str
    name: str
    _: KW_ONLY
    expected: float
    found: float
    template = (
        "{dataset}: expected {name} {expected}, as its clips are decoded, "
        "found {found}; omit it, or change the data set's"
    )


class GivenTestError(EmbstoreError, ValueError):
    """A share of rows for testing, though the manifest has a test set. Attributes: `path`, `share`."""

    path: Path
    share: object
    template = "{path} has a test set: expected no share of rows for testing, found test={share!r}; omit test="


class PartitionerError(EmbstoreError, ValueError):
    """A partitioner whose parts are not rows of its input. Attributes: `partitioner` (its name), `reason`."""

    partitioner: str
    reason: str
    template = "{partitioner}: {reason}"


class UnknownDatasetError(EmbstoreError, KeyError):
    """An unknown data set name. Attributes: `name`, `known`."""

    name: str
    known: Items[str] = Items()
    template = "no data set {name!r}; data sets: {known:quoted}"


class UnknownSplitError(EmbstoreError, KeyError):
    """An unknown split or fold. Attributes: `dataset`, `kind` ("split" or "fold"), `wanted`, `available`."""

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
    """Conflicting or incomplete arguments for a node. Attributes: `given`, `reason`."""

    given: dict[str, Any]
    reason: str
    template = "{reason}; found {given}"


class NodeRangeError(EmbstoreError, IndexError):
    """A node number too large to get any sample. Attributes: `node`, `nodes` (the number of nodes), `hint`."""

    node: int
    nodes: int | None
    _: KW_ONLY
    hint: str = ""

    def _template(self) -> str:
        last = "" if self.nodes is None else f" to {self.nodes - 1}"
        return f"no node {{node}}: nodes go from 0{last}" + ("; {hint}" if self.hint else "")


class DatasetLayoutError(EmbstoreError, ValueError):
    """Files in another layout than the data set's. Attributes: `path`, `reason`."""

    path: Path
    reason: str
    template = "{path}: {reason}"


class SharedKeysError(EmbstoreError, ValueError):
    """Keys to erase that another client has too. Nothing was erased. Attribute: `keys`."""

    keys: Items[str] = Items()
    template = "{keys:count} of these keys belong to other clients too, and nothing was erased: {keys:quoted}"


class FlcoreImportedError(EmbstoreError, RuntimeError):
    """PFLlib's ``flcore`` was imported before `install` and has the old function. Attribute: `modules`."""

    modules: Items[str] = Items()
    template = (
        "already imported: {modules:, }. PFLlib would still read its .npz files: call install() before importing flcore"
    )


class PFLlibNotFoundError(EmbstoreError, ImportError):
    """PFLlib is not on ``sys.path``. Attribute: `reason`."""

    reason: str
    template = "{reason}; add PFLlib's folder 'system' to sys.path"


class ClientClassesError(UnknownClassError):
    """Classes of a client's rows without a label. Attributes: `client`, `class_names`, `available`, `hint`."""

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
            return "client {client} has {found} different rows; it needs two, one for training and one for testing"
        return "client {client} has no row in its part {part!r}; give it more rows, or leave it out"


class OtherStoreError(EmbstoreError, ValueError):
    """A client's view is of another store. Attributes: `client`, `expected`, `found` (paths)."""

    client: int | str
    _: KW_ONLY
    expected: Path
    found: Path
    template = "client {client}: expected a view of {expected} as it is now, found one of {found}"

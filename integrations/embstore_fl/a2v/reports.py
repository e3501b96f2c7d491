"""Reports on a node's embeddings: where they were searched, their bytes, and the seconds that they saved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from embstore.cache.usage import usage_of
from embstore_fl.metrics import NodeMetrics
from embstore_fl.overlay import AudioEmbeddings, StoreLayer

if TYPE_CHECKING:
    from embstore.pipeline.decode_ahead import Failure

Where = Literal["cache", "other clients", "legacy file", "extraction"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One place that was searched for a node's embeddings.

    Attributes
    ----------
    where : {"cache", "other clients", "legacy file", "extraction"}
    found : int
        Embeddings found there.
    left : int
        Embeddings missing after that.
    reason : str
    seconds : float
    """

    where: Where
    found: int
    left: int
    reason: str
    seconds: float

    @property
    def outcome(self) -> str:
        """Outcome: "hit" if nothing is missing afterwards, "partial" if something was found, else "miss"."""
        return "hit" if not self.left else "partial" if self.found else "miss"

    def __str__(self) -> str:
        return (
            f"{self.where}: {self.outcome}: {self.found:,} found, {self.left:,} missing, "
            f"{self.seconds:.3g} s: {self.reason}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeEmbeddings:
    """Result of `A2VServer.load_node_embeddings`.

    Attributes
    ----------
    attempts : tuple of Attempt
    missing : tuple of str
        Keys without an embedding after all attempts.
    failed : tuple of Failure
        Clips that could not be read, decoded or encoded, with the reason. The data set no longer has these samples.
    metrics : NodeMetrics
    """

    attempts: tuple[Attempt, ...]
    missing: tuple[str, ...]
    failed: tuple[Failure, ...]
    metrics: NodeMetrics

    @property
    def complete(self) -> bool:
        """Whether every remaining sample of the data set has its embedding."""
        return not self.missing


def seconds_saved(embeddings: AudioEmbeddings) -> float:
    """Return the seconds to encode the rows that stores have, at the mean of the rows encoded there."""
    total = 0.0
    for layer, keys in embeddings.origins():
        if isinstance(layer, StoreLayer):
            used = usage_of(layer.path)
            total += len(keys) * used.seconds / used.encoded if used.encoded else 0.0
    return total


def nbytes_of(embeddings: AudioEmbeddings) -> int:
    """Return the bytes of all embeddings, in stores and in memory."""
    total = sum(int(value.nbytes) for value in embeddings.written.values())
    for layer, keys in embeddings.origins():
        if isinstance(layer, StoreLayer):
            total += len(keys) * layer.spec.row_nbytes
        else:
            total += sum(int(layer[key].nbytes) for key in keys)
    return total

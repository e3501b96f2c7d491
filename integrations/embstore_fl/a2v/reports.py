"""What became of a node's embeddings: where they were looked for, what they take, and what they saved."""

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
    """One place where a node's embeddings were looked for.

    Attributes
    ----------
    where : {"cache", "other clients", "legacy file", "extraction"}
    found, left : int
        Found there; still missing after that.
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
        """In a word: "hit" if nothing is missing any more, "partial", or "miss" if nothing was found."""
        return "hit" if not self.left else "partial" if self.found else "miss"

    def __str__(self) -> str:
        return (
            f"{self.where}: {self.outcome}: {self.found:,} found, {self.left:,} missing, "
            f"{self.seconds:.3g} s: {self.reason}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeEmbeddings:
    """What became of a node's embeddings.

    Attributes
    ----------
    attempts : tuple of Attempt
    missing : tuple of str
        Keys without an embedding after all of them.
    failed : tuple of Failure
        Clips that could not be read, decoded or encoded, each with its reason: the dataset goes on without them.
    metrics : NodeMetrics
    """

    attempts: tuple[Attempt, ...]
    missing: tuple[str, ...]
    failed: tuple[Failure, ...]
    metrics: NodeMetrics

    @property
    def complete(self) -> bool:
        """Whether every sample that the dataset goes on with has its embedding."""
        return not self.missing


def seconds_saved(embeddings: AudioEmbeddings) -> float:
    """Return what the rows that stores have would have taken, at the mean of those that were encoded there."""
    total = 0.0
    for layer, keys in embeddings.origins():
        if isinstance(layer, StoreLayer):
            used = usage_of(layer.path)
            total += len(keys) * used.seconds / used.encoded if used.encoded else 0.0
    return total


def nbytes_of(embeddings: AudioEmbeddings) -> int:
    """Return the bytes of embeddings, wherever they lie."""
    total = sum(int(value.nbytes) for value in embeddings.written.values())
    for layer, keys in embeddings.origins():
        if isinstance(layer, StoreLayer):
            total += len(keys) * layer.row_nbytes
        else:
            total += sum(int(layer.find(key).nbytes) for key in keys)
    return total

"""Metrics of each node: cache hits and misses, rows and bytes, and seconds of encoding saved."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, fields

from embstore._engine.sizes import size as size_text

logger = logging.getLogger("embstore")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeMetrics:
    """Metrics of one node. The sum of two is their total.

    Attributes
    ----------
    hits : int
        Embeddings found in the cache, with other clients, or in a legacy file.
    misses : int
        Embeddings not found there.
    extracted : int
        Misses that were encoded.
    failed : int
        Misses that could not be decoded or encoded.
    rows : int
        Embeddings that the node has now.
    nbytes : int
        Bytes of these embeddings.
    seconds : float
        Time of the whole load, extraction included.
    seconds_saved : float
        Time to encode the hits, at the mean of the rows encoded in that store. 0 if it was never measured.

    Examples
    --------
    >>> one = NodeMetrics(hits=60, misses=40, extracted=40, rows=100, nbytes=400_000, seconds=2.0, seconds_saved=3.0)
    >>> print(one + one)
    120 hits, 80 misses, 80 extracted, 0 failed; 200 rows, 800 kB; 4 s, 6 s saved
    """

    hits: int = 0
    misses: int = 0
    extracted: int = 0
    failed: int = 0
    rows: int = 0
    nbytes: int = 0
    seconds: float = 0.0
    seconds_saved: float = 0.0

    def __add__(self, other: NodeMetrics) -> NodeMetrics:
        return NodeMetrics(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(NodeMetrics)})

    def __str__(self) -> str:
        return (
            f"{self.hits:,} hits, {self.misses:,} misses, {self.extracted:,} extracted, {self.failed:,} failed; "
            f"{self.rows:,} rows, {size_text(self.nbytes)}; {self.seconds:.3g} s, {self.seconds_saved:.3g} s saved"
        )


class Metrics:
    """Metrics of a server's nodes, by name, and their total.

    Examples
    --------
    >>> metrics = Metrics()
    >>> metrics.add("0", NodeMetrics(hits=3, rows=3))
    >>> metrics.add("1", NodeMetrics(misses=2, extracted=2, rows=2))
    >>> metrics.total.rows, list(metrics)
    (5, ['0', '1'])
    """

    def __init__(self) -> None:
        self._nodes: dict[str, NodeMetrics] = {}

    def add(self, node: object, found: NodeMetrics) -> None:
        """Add metrics to those of a node."""
        name = str(node)
        self._nodes[name] = self._nodes.get(name, NodeMetrics()) + found

    def __getitem__(self, node: object) -> NodeMetrics:
        return self._nodes[str(node)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def total(self) -> NodeMetrics:
        """Sum over all nodes."""
        return sum(self._nodes.values(), NodeMetrics())

    def lines(self) -> list[str]:
        """Return a line for each node, and one for the total."""
        return [*(f"node {name}: {found}" for name, found in self._nodes.items()), f"{len(self)} nodes: {self.total}"]

    def log(self) -> None:
        """Log these lines at level INFO."""
        for line in self.lines():
            logger.info("%s", line)

    def __str__(self) -> str:
        return "\n".join(self.lines())

"""What the store saved each node: hits and misses, rows and bytes, and the seconds that encoding would have taken."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, fields

from embstore._engine.sizes import size as size_text

logger = logging.getLogger("embstore")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeMetrics:
    """What became of the samples that a node wanted. Two of them add up.

    Attributes
    ----------
    hits : int
        Found: in the cache, with other clients, or in a legacy file.
    misses : int
        Not found there.
    extracted, failed : int
        Of the misses: encoded anew; could not be decoded or encoded.
    rows, nbytes : int
        Embeddings that the node has now, and their bytes.
    seconds : float
        That it took, extraction included.
    seconds_saved : float
        What the hits would have taken to encode, at the mean of the rows of that store that were encoded; 0 where that
        was never measured.

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
    """The metrics of a server's nodes, and in total.

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
        """Count what was found for a node, beside what was counted for it before."""
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
        """All nodes together."""
        return sum(self._nodes.values(), NodeMetrics())

    def lines(self) -> list[str]:
        """Return a line for each node, and one for all."""
        return [*(f"node {name}: {found}" for name, found in self._nodes.items()), f"{len(self)} nodes: {self.total}"]

    def log(self) -> None:
        """Log these lines, at the level INFO."""
        for line in self.lines():
            logger.info("%s", line)

    def __str__(self) -> str:
        return "\n".join(self.lines())

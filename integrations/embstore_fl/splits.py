"""Assigns samples to nodes and splits, class by class over the whole data set. Pure functions, no I/O.

The samples of a class get one random order. Its generator is seeded by (seed, class) only. An even pattern over the
positions of that order assigns the splits, and a node's share is a contiguous slice of it. For any selection of
classes and any number of nodes: a sample's split is the same on all nodes, shares of two nodes are disjoint, and each
share has the splits in their ratios. Shares do not depend on ratios, nor splits on shares.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final, Literal

import numpy as np

from embstore_fl.errors import NodeError, NodeRangeError, RatiosError

SPLITS: Final = ("train", "val", "test")
RATIOS: Final[Mapping[str, float]] = {"train": 0.7, "val": 0.1, "test": 0.2}
SEED: Final = 42
_STARTS: Final = 100
_LARGEST_ERROR: Final = 1e-6
"""Tolerance for a ratio and for the sum. A test ratio is often the result of a subtraction, such as 1 - 0.9 - 0.1."""

Group = Hashable


def rng_of(seed: int, class_name: str) -> np.random.Generator:
    """Return the random generator of a class. It depends only on the seed and the class."""
    digest = blake2b(f"{seed}\0{class_name}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitScheme:
    """Scheme of the split into train, val and test.

    Attributes
    ----------
    by : {"ratio", "official", "fold"}
        At random, by the split of the data set's authors, or by the folds in `folds`.
    ratios : mapping of str to float
        Must sum to 1. With "official" and "fold", only the ratio of val to train is used, if the data set has no
        validation samples or no folds are named for val: validation samples are then drawn from those for training.
    folds : mapping of str to tuple
        The folds of each split.
    seed : int

    Raises
    ------
    RatiosError
    TypeError
        Folds that are not tuples.
    ValueError
        Another `by`, an unknown split, or a fold in two splits.
    """

    by: Literal["ratio", "official", "fold"] = "ratio"
    ratios: Mapping[str, float] = field(default_factory=lambda: dict(RATIOS))
    folds: Mapping[str, tuple[Group, ...]] = field(default_factory=dict)
    seed: int = SEED

    def __post_init__(self) -> None:
        if self.by not in ("ratio", "official", "fold"):
            raise ValueError(f"expected by 'ratio', 'official' or 'fold', found {self.by!r}")
        if unknown := {*self.ratios, *self.folds} - {*SPLITS}:
            raise ValueError(f"expected the splits {SPLITS}, found {sorted(unknown)}")
        total = sum(self.ratios.values())
        sound = all(math.isfinite(ratio) and ratio >= -_LARGEST_ERROR for ratio in self.ratios.values())
        if not sound or not math.isclose(total, 1, abs_tol=_LARGEST_ERROR):
            raise RatiosError(dict(self.ratios), total)
        object.__setattr__(self, "ratios", {name: max(0.0, ratio) for name, ratio in self.ratios.items()})
        if not all(isinstance(folds, tuple) for folds in self.folds.values()):
            raise TypeError(f"expected tuples of folds, found {dict(self.folds)}")
        named = [fold for folds in self.folds.values() for fold in folds]
        if len(set(named)) < len(named):
            raise ValueError(f"expected each fold in one split, found {dict(self.folds)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeShare:
    """A node's share of each class: a contiguous slice of the class's order.

    Attributes
    ----------
    node : int
        From 0.
    num_nodes : int or None
        Number of nodes. Their shares of a class differ by at most one sample.
    samples_per_node : int or None
        Samples of each class for a node, while the class has enough.

    Raises
    ------
    NodeError
        Both of `num_nodes` and `samples_per_node` are given, or neither, or one that is not positive.
    NodeRangeError
        The node is negative, or not below `num_nodes`.

    Examples
    --------
    >>> NodeShare(node=1, num_nodes=3).bounds(10)
    (4, 7)
    >>> NodeShare(node=1, samples_per_node=3).bounds(5)
    (3, 5)
    """

    node: int
    num_nodes: int | None = None
    samples_per_node: int | None = None

    def __post_init__(self) -> None:
        given = {"num_nodes": self.num_nodes, "samples_per_node": self.samples_per_node}
        if None not in given.values():
            raise NodeError(given, "expected num_nodes or samples_per_node, not both")
        counts = [count for count in given.values() if count is not None]
        if not counts:
            raise NodeError({"node": self.node}, "expected num_nodes or samples_per_node with a node's number")
        if counts[0] < 1:
            raise NodeError(given, "expected a positive number")
        if self.node < 0 or (self.num_nodes is not None and self.node >= self.num_nodes):
            raise NodeRangeError(self.node, self.num_nodes)

    def bounds(self, count: int) -> tuple[int, int]:
        """Return start and stop of the node's slice of `count` positions."""
        if self.num_nodes is not None:
            each, more = divmod(count, self.num_nodes)
            start = self.node * each + min(self.node, more)
            return start, start + each + (self.node < more)
        assert self.samples_per_node is not None
        start = min(count, self.node * self.samples_per_node)
        return start, min(count, start + self.samples_per_node)

    def check(self, counts: Mapping[str, int]) -> list[str]:
        """Return the classes with fewer samples for the node than `samples_per_node`.

        Raises
        ------
        NodeRangeError
            The node gets no sample of any class.
        """
        if self.samples_per_node is None:
            return []
        nodes = max((-(-count // self.samples_per_node) for count in counts.values()), default=0)
        if self.node >= nodes:
            largest = max(counts.values(), default=0)
            hint = f"each has {self.samples_per_node} samples of a class, and the largest class has {largest}"
            raise NodeRangeError(self.node, nodes, hint=hint)
        sizes = {
            name: stop - start for name, (start, stop) in zip(counts, map(self.bounds, counts.values()), strict=True)
        }
        return [name for name, size in sizes.items() if size < self.samples_per_node]


def class_order(groups: Sequence[Group], *, rng: np.random.Generator) -> list[int]:
    """Return the random order of a class: each index once.

    Samples of a group (a fold, an official split) are spread evenly, so that each node's slice has all groups in
    proportion.

    Parameters
    ----------
    groups : sequence
        Group of each sample, or None. The samples must always be in the same order.
    rng : numpy.random.Generator
    """
    members: dict[Group, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    places: list[int] = []
    spread: list[float] = []
    for group in sorted(members, key=repr):
        own = members[group]
        places += [own[i] for i in rng.permutation(len(own)).tolist()]
        spread += ((np.arange(len(own)) + rng.random(len(own))) / len(own)).tolist()
    return [places[i] for i in np.argsort(spread, kind="stable").tolist()]


def even_pattern(count: int, ratios: Mapping[str, float], *, start: int = 0) -> list[str]:
    """Return the split of each of `count` positions. Any slice has the splits in their ratios to within one.

    Examples
    --------
    >>> even_pattern(10, {"train": 0.7, "val": 0.1, "test": 0.2})
    ['train', 'train', 'test', 'train', 'train', 'val', 'train', 'train', 'test', 'train']
    """
    needed = start + count
    # The pattern is the same for all classes and nodes, so a longer one is made once and cached.
    return list(_pattern(tuple(ratios.items()), 1 << max(7, needed.bit_length()))[start:needed])


@functools.lru_cache(maxsize=64)
def _pattern(ratios: tuple[tuple[str, float], ...], count: int) -> tuple[str, ...]:
    """Assign each position to the split that is furthest below its ratio."""
    given = [0] * len(ratios)
    pattern = []
    for position in range(1, count + 1):
        lacking = [round(ratio * position - had, 9) for (_, ratio), had in zip(ratios, given, strict=True)]
        chosen = lacking.index(max(lacking))
        given[chosen] += 1
        pattern.append(ratios[chosen][0])
    return tuple(pattern)


def splits_of(ordered: Sequence[Group], scheme: SplitScheme, *, rng: np.random.Generator) -> list[str | None]:
    """Return the split of each sample of a class.

    Parameters
    ----------
    ordered : sequence
        Group of each sample (its fold or official split), in the class's order.
    scheme : SplitScheme
    rng : numpy.random.Generator

    Returns
    -------
    list of str or None
        None for samples of folds that are in no split.
    """
    start = int(rng.integers(_STARTS))
    if scheme.by == "ratio":
        return list(even_pattern(len(ordered), scheme.ratios, start=start))
    if scheme.by == "official":
        of_group: dict[Group, str] = {name: name for name in SPLITS}
    else:
        of_group = {fold: name for name, folds in scheme.folds.items() for fold in folds}
    found = [of_group.get(group) for group in ordered]
    drawn = scheme.by == "official" or not scheme.folds.get("val")
    train, val = scheme.ratios.get("train", 0), scheme.ratios.get("val", 0)
    if drawn and val and "val" not in found:
        places = [place for place, split in enumerate(found) if split == "train"]
        ratios = {"train": train / (train + val), "val": val / (train + val)}
        for place, split in zip(places, even_pattern(len(places), ratios, start=start), strict=True):
            found[place] = split
    return list(found)

"""Which sample belongs to which node, and to which split: decided once over the whole data set, class by class. Pure.

The samples of a class get one order, drawn by a generator that is seeded from (seed, class) alone. Splits are laid over
the positions of that order in an even pattern, and a node's share is a stretch of it. So whatever classes a node takes,
and however many nodes there are: a sample's split is the same for all, two nodes' shares have no sample in common, and
each share has the splits in their ratios. Shares don't depend on ratios, nor splits on shares.
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
"""By which ratios may miss 1: a test ratio is mostly what a subtraction left."""

Group = Hashable


def rng_of(seed: int, class_name: str) -> np.random.Generator:
    """Return the generator of a class, which depends on nothing but these two."""
    digest = blake2b(f"{seed}\0{class_name}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitScheme:
    """How samples are split into train, val and test.

    Attributes
    ----------
    by : {"ratio", "official", "fold"}
        At random; as the data set's authors did; or by the folds named.
    ratios : mapping of str to float
        Sum to 1. By "official" and "fold", only what they say of val beside train is used, where the data set has
        no validation samples of its own, or none were named: they are drawn from those for training.
    folds : mapping of str to tuple
        The folds of each split.
    seed : int

    Raises
    ------
    RatiosError
    ValueError
        Another `by`, or a fold in two splits.
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
        sound = all(math.isfinite(ratio) and ratio >= 0 for ratio in self.ratios.values())
        if not sound or not math.isclose(total, 1, abs_tol=_LARGEST_ERROR):
            raise RatiosError(dict(self.ratios), total)
        if not all(isinstance(folds, tuple) for folds in self.folds.values()):
            raise TypeError(f"expected tuples of folds, found {dict(self.folds)}")
        named = [fold for folds in self.folds.values() for fold in folds]
        if len(set(named)) < len(named):
            raise ValueError(f"a fold is in one split alone, found {dict(self.folds)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeShare:
    """Which node of how many, of each class: a stretch of the class's order.

    Attributes
    ----------
    node : int
        From 0.
    num_nodes : int or None
        Each gets as many samples of a class, or one more.
    samples_per_node : int or None
        Or each gets this many of a class, as long as there are.

    Raises
    ------
    NodeError
        Both of them are given, or neither, or one that is not positive.
    NodeRangeError
        There is no such node.

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
            raise NodeError(given, "num_nodes and samples_per_node say the same in two ways: give one of them")
        counts = [count for count in given.values() if count is not None]
        if not counts:
            raise NodeError({"node": self.node}, "a node needs num_nodes or samples_per_node beside its number")
        if counts[0] < 1:
            raise NodeError(given, "expected a positive number")
        if self.node < 0 or (self.num_nodes is not None and self.node >= self.num_nodes):
            raise NodeRangeError(self.node, self.num_nodes)

    def bounds(self, count: int) -> tuple[int, int]:
        """Return where the node's stretch of `count` positions starts and stops."""
        if self.num_nodes is not None:
            each, more = divmod(count, self.num_nodes)
            start = self.node * each + min(self.node, more)
            return start, start + each + (self.node < more)
        assert self.samples_per_node is not None
        start = min(count, self.node * self.samples_per_node)
        return start, min(count, start + self.samples_per_node)

    def check(self, counts: Mapping[str, int]) -> list[str]:
        """Return the classes that the node gets fewer samples of than it asks for.

        Raises
        ------
        NodeRangeError
            It gets none of any class.
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
    """Return the order of a class: places, each once.

    Samples of a group (a fold, an official split) are spread evenly over it, so that each node's stretch has all of
    them in proportion.

    Parameters
    ----------
    groups : sequence
        Of each sample, None for none. The samples themselves must come in an order that does not change.
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
    """Return the split of each of `count` positions: each stretch of them has the splits in their ratios, but for one.

    Examples
    --------
    >>> even_pattern(10, {"train": 0.7, "val": 0.1, "test": 0.2})
    ['train', 'train', 'test', 'train', 'train', 'val', 'train', 'train', 'test', 'train']
    """
    needed = start + count
    # The same for all classes and nodes: made once, and a little longer than it is needed.
    return list(_pattern(tuple(ratios.items()), 1 << max(7, needed.bit_length()))[start:needed])


@functools.lru_cache(maxsize=64)
def _pattern(ratios: tuple[tuple[str, float], ...], count: int) -> tuple[str, ...]:
    """Give each position to the split that lacks the most."""
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
        The group of each, in the class's order: its fold, or its official split.
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

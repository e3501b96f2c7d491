"""Draw places at random: in named parts, stratified or by groups that stay together, or some of each value. No I/O."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.arguments import mapping_of
from embstore._engine.rng import Rng, generator_of


def split_rows(
    count: int,
    ratios: Mapping[str, float],
    *,
    rng: Rng,
    strata: Sequence[Any] | None = None,
    groups: Sequence[Any] | None = None,
) -> dict[str, NDArray[np.int64]]:
    """Split the places ``0 .. count - 1`` into parts of the given ratios.

    Parameters
    ----------
    count : int
    ratios : mapping of str to float
        The share of each part. The shares sum to 1.
    rng : int or numpy.random.Generator
    strata : sequence, optional
        The places of each value are split in these ratios. A group belongs to the stratum of its first place.
    groups : sequence, optional
        Places with the same value stay together.

    Returns
    -------
    dict of str to ndarray of int64
        The places of each part, ascending. Each place is in exactly one part.

    Raises
    ------
    ValueError
        A ratio is negative, or the ratios don't sum to 1.

    Examples
    --------
    >>> parts = split_rows(10, {"train": 0.8, "test": 0.2}, rng=0)
    >>> {name: len(places) for name, places in parts.items()}
    {'train': 8, 'test': 2}
    """
    ratios = mapping_of("ratios", ratios, "names to shares")
    numbers = ratios and all(isinstance(share, int | float) for share in ratios.values())
    if not numbers or min(ratios.values()) < 0 or not math.isclose(sum(ratios.values()), 1, abs_tol=1e-9):
        raise ValueError(f"expected ratios from 0 that sum to 1, found {ratios!r:.200}")
    rng = generator_of(rng)
    groups = range(count) if groups is None else groups
    members: dict[Any, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    units: dict[Any, list[Any]] = {}
    for group, places in members.items():
        units.setdefault(None if strata is None else strata[places[0]], []).append(group)

    chosen: dict[str, list[int]] = {name: [] for name in ratios}
    ends = np.cumsum(list(ratios.values()))
    for stratum in units.values():
        order = rng.permutation(len(stratum))
        # Round the ends, not the sizes: then each unit is in one part, and the total stays. Round up or down at
        # random: else a part of a fifth would never get one of the only two units of a class. Whole numbers stay.
        cuts = np.floor(np.round(ends * len(stratum), 9) + rng.random()).astype(int)
        for name, part in zip(chosen, np.split(order, cuts[:-1]), strict=True):
            chosen[name] += [place for unit in part for place in members[stratum[unit]]]
    return {name: np.sort(np.array(places, dtype=np.int64)) for name, places in chosen.items()}


def shared_values(values: Sequence[Any], parts: Iterable[NDArray[np.int64]]) -> int:
    """Return the number of values that occur in several parts."""
    counts = Counter(value for part in parts for value in {values[place] for place in part.tolist()})
    return sum(count > 1 for count in counts.values())


def sample_rows(n: int, values: Sequence[Hashable], rng: np.random.Generator, by: str) -> NDArray[np.int64]:
    """Return `n` places of each value, drawn at random, the values in the order of their first places.

    Raises
    ------
    ValueError
        A value has fewer places. The message lists these values, and names the column `by`.
    """
    places: dict[Hashable, list[int]] = {}
    for place, value in enumerate(values):
        places.setdefault(value, []).append(place)
    if few := [f"{value!r} has {len(found):,}" for value, found in places.items() if len(found) < n]:
        more = f" and {len(few) - 5:,} more" if len(few) > 5 else ""
        raise ValueError(f"expected at least {n:,} rows of each {by}: {', '.join(few[:5])}{more}")
    drawn = [rng.choice(found, size=n, replace=False) for found in places.values()]
    return np.concatenate([np.empty(0, np.int64), *drawn])

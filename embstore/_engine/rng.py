"""The parameter `rng`: an int seed or a generator."""

from __future__ import annotations

from typing import Any

import numpy as np

Rng = int | np.random.Generator
"""Type of each parameter `rng`."""


def generator_of(rng: Any) -> np.random.Generator:
    """Return a generator as it is, or make one from an int seed.

    Raises
    ------
    TypeError
        `rng` is neither an int nor a `numpy.random.Generator`. A bool is refused, too.
    ValueError
        The seed is negative.
    """
    if isinstance(rng, np.random.Generator):
        return rng
    if isinstance(rng, bool | np.bool_) or not isinstance(rng, int | np.integer):
        found = f"{type(rng).__module__}.{type(rng).__qualname__}".removeprefix("builtins.")
        raise TypeError(f"expected rng to be an int seed or a numpy.random.Generator, found {found}")
    if rng < 0:
        raise ValueError(f"expected a seed of at least 0, found {rng}")
    return np.random.default_rng(int(rng))

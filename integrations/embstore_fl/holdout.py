"""Which rows a client trains on and which it is tested on, decided by their keys. NumPy alone, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Ranks = NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a client holds: row numbers, and of each its label and its rank, ``(n,)`` each; a row may occur twice."""

    rows: Ints
    labels: Ints
    ranks: Ranks


def ranks_of(hashes: NDArray[np.uint64], seed: int) -> Ranks:
    """Return a random number for each key, that follows from the key and the seed alone.

    So a row's number is the same in every client that holds it, whatever else is stored or comes later, and
    after a compaction. It is the key's hash, finished by splitmix64 (Steele, Lea and Flood 2014) from where the
    seed puts it: hashes as they are would give the same order for each seed.

    Parameters
    ----------
    hashes : ndarray, (n, 2) uint64
        As the store keeps them.
    seed : int

    Returns
    -------
    ndarray, (n,) uint64

    Examples
    --------
    >>> from embstore._engine.format.keys import hash_keys
    >>> hashes = hash_keys(["a:dog", "b:dog", "c:dog"])
    >>> (ranks_of(hashes, 0) == ranks_of(hashes[::-1], 0)[::-1]).all()
    np.True_
    """
    mixed = hashes[:, 0] + np.random.SeedSequence(seed).generate_state(1, np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    done: Ranks = mixed ^ (mixed >> np.uint64(31))
    return done


def held_out(clients: Mapping[Any, Held], test: float) -> dict[Any, NDArray[np.bool_]]:
    """Decide for each client which of its rows are for testing.

    Of each client `test` of the rows, and of each of its classes the same share to within one row: those of the
    lowest ranks. A row that two clients hold is for both what it is for the first: else one's test sample
    would be the other's training sample. The later client's other rows make up for it as far as they can.

    Parameters
    ----------
    clients : mapping to Held
        Of at least two different rows each.
    test : float
        Above 0 and below 1.

    Returns
    -------
    dict to ndarray, (n,) bool
        True where a client's row is for testing; each client has rows of both kinds, unless all that it holds
        was decided by others.

    Examples
    --------
    >>> dogs, cats = [0] * 8, [1] * 4
    >>> held = Held(rows=np.arange(12), labels=np.array(dogs + cats), ranks=np.arange(12, dtype=np.uint64))
    >>> np.flatnonzero(held_out({0: held}, 0.25)[0]).tolist()
    [0, 1, 8]
    """
    size = 1 + max((int(held.rows.max()) for held in clients.values()), default=-1)
    decided = np.full(size, _OPEN, dtype=np.int8)
    for held in clients.values():
        rows, first = np.unique(held.rows, return_index=True)
        chosen = _chosen(held.labels[first], held.ranks[first], decided[rows], test)
        decided[rows] = np.where(chosen, _TEST, _TRAIN)
    return {client: decided[held.rows] == _TEST for client, held in clients.items()}


_TEST, _OPEN, _TRAIN = 0, 1, 2  # in the order in which a class's rows are taken for its share of the test


def _chosen(labels: Ints, ranks: Ranks, decided: NDArray[np.int8], test: float) -> NDArray[np.bool_]:
    """Choose a client's test rows among different ones, of which some may be decided."""
    _, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.lexsort((ranks, decided, places))
    starts = np.cumsum(counts) - counts
    within = np.empty(len(labels), dtype=np.int64)  # each row's place in its class
    within[order] = np.arange(len(labels)) - np.repeat(starts, counts)
    lowest = np.minimum.reduceat(ranks[np.lexsort((ranks, places))], starts)
    quotas = _quotas(counts, lowest, test)
    chosen: NDArray[np.bool_] = (decided == _TEST) | ((decided == _OPEN) & (within < quotas[places]))
    return chosen


def _quotas(counts: Ints, ties: Ranks, test: float) -> Ints:
    """Share the test rows out over the classes, to the largest remainders what is left; at least one row each way."""
    exact = counts * test
    quotas: Ints = np.floor(exact).astype(np.int64)
    total = np.clip(np.rint(exact.sum()), 1, counts.sum() - 1)
    left = max(0, int(total) - int(quotas.sum()))
    quotas[np.lexsort((ties, quotas - exact))[:left]] += 1
    return quotas

"""Splits each client's rows into train and test by their keys. NumPy only, no I/O."""

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
    """A client's rows, ``(n,)`` each: row numbers, labels and ranks. A row may occur twice."""

    rows: Ints
    labels: Ints
    ranks: Ranks


def ranks_of(hashes: NDArray[np.uint64], seed: int) -> Ranks:
    """Return a random number for each file_id. It depends only on the file_id and the seed.

    A sample's number is the same in every client, after its label changes, after more rows are stored, and after a
    compaction. It is the file_id's hash plus a number from the seed, mixed by splitmix64 (Steele, Lea and Flood 2014).
    Unmixed hashes would give the same order for each seed.

    Parameters
    ----------
    hashes : ndarray, (n, 2) uint64
        Of file_ids, by `hash_file_ids`.
    seed : int

    Returns
    -------
    ndarray, (n,) uint64

    Examples
    --------
    >>> from embstore._engine.format.keys import hash_file_ids
    >>> hashes = hash_file_ids(["a", "b", "c"])
    >>> (ranks_of(hashes, 0) == ranks_of(hashes[::-1], 0)[::-1]).all()
    np.True_
    """
    mixed = hashes[:, 0] + np.random.SeedSequence(seed).generate_state(1, np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    done: Ranks = mixed ^ (mixed >> np.uint64(31))
    return done


def held_out(clients: Mapping[Any, Held], test: float) -> dict[Any, NDArray[np.bool_]]:
    """Choose the rows for testing of each client.

    `test` is the share of each client's rows, and of each of its classes to within one row. The rows with the lowest
    ranks are chosen. A row of two clients has the same split in both, as decided for the first. Otherwise a test
    sample of one would be a training sample of the other. The second client's other rows compensate as far as they
    can.

    Parameters
    ----------
    clients : mapping to Held
        At least two different rows each.
    test : float
        Above 0 and below 1.

    Returns
    -------
    dict to ndarray, (n,) bool
        True for rows for testing. Each client has rows of both kinds, unless earlier clients decided all its rows.

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


_TEST, _OPEN, _TRAIN = 0, 1, 2  # sort order within a class: the first rows fill its share of test rows


def _chosen(labels: Ints, ranks: Ranks, decided: NDArray[np.int8], test: float) -> NDArray[np.bool_]:
    """Choose a client's test rows among different rows. Some may be decided already."""
    _, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.lexsort((ranks, decided, places))
    starts = np.cumsum(counts) - counts
    within = np.empty(len(labels), dtype=np.int64)  # each row's position in its class
    within[order] = np.arange(len(labels)) - np.repeat(starts, counts)
    lowest = np.minimum.reduceat(ranks[np.lexsort((ranks, places))], starts)
    quotas = _quotas(counts, lowest, test)
    chosen: NDArray[np.bool_] = (decided == _TEST) | ((decided == _OPEN) & (within < quotas[places]))
    return chosen


def _quotas(counts: Ints, ties: Ranks, test: float) -> Ints:
    """Return the number of test rows of each class, by largest remainders. Train and test get at least one row."""
    exact = counts * test
    quotas: Ints = np.floor(exact).astype(np.int64)
    total = np.clip(np.rint(exact.sum()), 1, counts.sum() - 1)
    left = max(0, int(total) - int(quotas.sum()))
    quotas[np.lexsort((ties, quotas - exact))[:left]] += 1
    return quotas

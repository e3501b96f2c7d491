"""The same samples for PFLlib twice: as its .npz files, and as a store."""

import json
import sys
from pathlib import Path

import numpy as np

import embstore


def samples(count: int, dim: int, classes: int, rng: np.random.Generator) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return keys, rows and labels of classes that a linear head can tell apart, mostly."""
    labels = rng.integers(classes, size=count)
    rows = rng.standard_normal((count, dim)) + rng.standard_normal((classes, dim))[labels] / 2
    keys = [f"sample_{place:06d}:{class_names(classes)[label]}" for place, label in enumerate(labels)]
    return keys, rows.astype(np.float32), labels


def class_names(classes: int) -> list[str]:
    return [f"class_{place}" for place in range(classes)]


def dealt(labels: np.ndarray, clients: int, rng: np.random.Generator) -> list[list[int]]:
    """Deal the rows to clients, in shares of each class that differ; each client lacks a class (FedGC needs that)."""
    hands: list[list[int]] = [[] for _ in range(clients)]
    names = np.unique(labels)
    for place, label in enumerate(names):
        rows = rng.permutation(np.flatnonzero(labels == label))
        holders = [hand for client, hand in enumerate(hands) if client % len(names) != place]
        ends = np.cumsum(rng.dirichlet(np.full(len(holders), 3.0)))[:-1]
        for hand, part in zip(holders, np.split(rows, (ends * len(rows)).astype(int)), strict=True):
            hand += part.tolist()
    return [rng.permutation(hand).tolist() for hand in hands]


def written(folder: Path, checkout: Path, *, count: int, dim: int, classes: int, clients: int, name: str) -> None:
    """Write a store, and what its clients hold as PFLlib's files, from the arrays that the store was made of."""
    rng = np.random.default_rng(0)
    keys, rows, labels = samples(count, dim, classes, rng)
    hands = dealt(labels, clients, rng)
    (folder / "system").mkdir(parents=True)
    with embstore.open(folder / "store.zarr", "w-", config={"benchmark": "pfllib"}) as store:
        store.append(keys, rows)
    (folder / "partitions.json").write_text(json.dumps({"rows": hands, "classes": class_names(classes)}))

    sys.path.insert(0, str(checkout / "system"))
    from embstore_fl import pfllib

    installed = pfllib.install(embstore.open(folder / "store.zarr"), hands, class_names(classes))
    for part, data in (("train", installed.train), ("test", installed.test)):
        to = folder / "dataset" / name / part
        to.mkdir(parents=True)
        for client in range(clients):
            chosen = data[client].view.rows
            # as utils/dataset_utils.py of PFLlib's data sets saves them
            np.savez_compressed(to / f"{client}.npz", data={"x": rows[chosen], "y": labels[chosen]})

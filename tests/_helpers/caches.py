"""Stores of caches for tests, and runs on them."""

import logging
import os
import time

import numpy as np

import embstore
from embstore.encoders import FunctionEncoder

KEYS = [f"{i}:c" for i in range(40)]
ROWS = np.arange(40 * 256, dtype=np.float32).reshape(40, 256)
RUN = {"hits": 1, "misses": 2, "served": 3, "encoded": 4, "seconds": 0.5}


def fill(cache, *, age=None, rows=40, **config):
    """Make a store of a config, written `age` seconds ago. It is opened by its path, so that no use is noted."""
    config = config or {"a": 1}
    with embstore.open(cache.path_of(config), "a", config=config) as store:
        store.append(KEYS[:rows], ROWS[:rows])
    if age is not None:
        os.utime(store.path / "zarr.json", (time.time() - age,) * 2)
    return store.path


def encoder(run=lambda items: None, fields=("mean",), **config):
    """Return an encoder that gives the length of each item, and calls `run` with each batch."""

    def encode(items):
        run(items)
        return dict.fromkeys(fields, np.array([[len(item)] for item in items], np.float32))

    specs = {name: embstore.FieldSpec(shape=(1,)) for name in fields}
    return FunctionEncoder(encode, config={"encoder": "length", **config}, fields=specs)


def counted(cache):
    """Return the counts of the one store of a cache."""
    (store,) = cache.stats()
    return tuple(getattr(store.usage, name) for name in ("runs", "hits", "misses", "served", "encoded"))


def warnings(caplog):
    """Return embstore's messages that are warnings or worse."""
    return [r.getMessage() for r in caplog.records if r.name == "embstore" and r.levelno >= logging.WARNING]

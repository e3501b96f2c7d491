"""Samples of a client, and test samples of a server: from the store, or encoded again as without a store."""

from collections.abc import Callable
from pathlib import Path

import torch
from flwr.app import Context
from torch.utils.data import Dataset, TensorDataset

from embstore.errors import MissingKeysError
from embstore_fl.flower import client_dataset, client_keys, server_dataset, server_keys
from embstore_fl.manifest import Manifest
from fl_docstrings.encoder import encode_anew, encode_into_store


def client_samples(context: Context, split: str) -> Dataset:
    """Return the client's samples: embeddings and labels."""
    return _samples(context, split, client_keys, client_dataset)


def server_samples(context: Context) -> Dataset:
    """Return the test samples of all clients."""
    return _samples(context, "test", server_keys, server_dataset)


def _samples(
    context: Context,
    split: str,
    keys: Callable[[Context, str], list[str]],
    stored: Callable[[Context, str], Dataset],
) -> Dataset:
    if context.run_config["encode"] == "every-round":
        return _encoded_again(context, keys(context, split))
    try:
        return stored(context, split)
    except MissingKeysError as error:  # in the first round
        encode_into_store(error.keys, str(context.run_config["texts"]), Path(str(context.run_config["embstore.store"])))
        return stored(context, split)


def _encoded_again(context: Context, keys: list[str]) -> Dataset:
    """Return the same samples, encoded on each call, as without a store."""
    classes = Manifest.read(str(context.run_config["embstore.manifest"])).classes
    labels = [classes.index(key.rpartition(":")[2]) for key in keys]
    return TensorDataset(encode_anew(keys, str(context.run_config["texts"])), torch.tensor(labels))

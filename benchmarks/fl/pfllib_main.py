"""Runs PFLlib's own main.py as it is, on its .npz files, on those kept in RAM, or on a store.

    python -m benchmarks.fl.pfllib_main CHECKOUT FOLDER {npz,ram,store} -algo FedAvg -data demo …

CHECKOUT is a clone of PFLlib, of which nothing is changed. FOLDER is what `written` of pfllib_data.py has made; PFLlib
writes its results there. What follows goes to main.py. torch, numpy and random are seeded.
"""

import functools
import json
import os
import random
import runpy
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import embstore


def run(
    checkout: Path, folder: Path, side: str, arguments: list[str], before: Callable[[], None] = lambda: None
) -> None:
    """Run main.py; `before` is called once the data is in place and before main.py is."""
    system = str(checkout.resolve() / "system")
    os.chdir(folder / "system")  # PFLlib reads ../dataset and writes ../results and models
    sys.path[0] = system
    sys.modules["torchvision"] = types.ModuleType("torchvision")  # imported, and only used for models of images
    if side == "store":
        from embstore_fl import pfllib

        given = json.loads(Path("../partitions.json").read_text())
        pfllib.install(embstore.open("../store.zarr"), given["rows"], given["classes"])
    elif side == "ram":
        import utils.data_utils

        utils.data_utils.read_client_data = functools.cache(utils.data_utils.read_client_data)
    before()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    sys.argv = ["main.py", *arguments]
    runpy.run_path(f"{system}/main.py", run_name="__main__")


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:])

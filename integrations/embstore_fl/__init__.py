"""embstore_fl: stores as the data sets of federated learning.

`datasets` reads VEGAS, ESC-50 and VGGSound and assigns samples to nodes. `a2v` is the adapter for the audio-to-visual
code base, `pfllib` for PFLlib, `flower` for Flower. Names are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from embstore._engine.lazy import lazily

if TYPE_CHECKING:
    from embstore_fl import a2v as a2v
    from embstore_fl import datasets as datasets
    from embstore_fl import errors as errors
    from embstore_fl import flower as flower
    from embstore_fl import pfllib as pfllib
    from embstore_fl.metrics import Metrics as Metrics
    from embstore_fl.metrics import NodeMetrics as NodeMetrics
    from embstore_fl.withdrawal import erase_client as erase_client

_HOMES = {
    "Metrics": "metrics",
    "NodeMetrics": "metrics",
    "a2v": "",
    "datasets": "",
    "erase_client": "withdrawal",
    "errors": "",
    "flower": "",
    "pfllib": "",
}

__all__ = [*_HOMES]

if not TYPE_CHECKING:  # a type checker that sees `__getattr__` accepts any misspelt name
    __getattr__, __dir__ = lazily(__name__, _HOMES)

"""embstore_fl: the store inside the way federated learning makes the data sets of its servers and clients.

`datasets` knows VEGAS, ESC-50 and VGGSound, and which node has which sample; `a2v` gives the audio-to-visual code base
the names it has; `pfllib` and `flower` do so for these two. Names are imported when they are first used.
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

if not TYPE_CHECKING:  # it would accept any misspelt name
    __getattr__, __dir__ = lazily(__name__, _HOMES)

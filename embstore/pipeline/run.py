"""`Run`: the parameters of a run of `embed`, which its steps share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from embstore._engine.format.config import Config
from embstore._engine.format.record import Origin
from embstore.cache.cache import Cache
from embstore.encoders.base import BaseEncoder
from embstore.pipeline.columns import SampleColumns
from embstore.pipeline.freshness import Compare
from embstore.sources.base import AnySample

Samples = Mapping[str, AnySample]
"""Samples by key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The parameters of a run of `embed`.

    Attributes
    ----------
    cache : Cache
    path : PurePath
        Path of the store that the run fills: the store of the config, or a shard's part of it.
    config : Config
    encoder : BaseEncoder
    samples : mapping of str to Sample
        Wanted samples, by key.
    origin : Origin
        Of the source.
    whole : bool
        Whether the samples are all of the data set.
    columns : SampleColumns
        Values that the samples bring along.
    batch_size, workers, interval, compare, canaries
        See `embed`.
    began : int
        Time before the source was read, in ns since the epoch.
    """

    cache: Cache
    path: PurePath
    config: Config
    encoder: BaseEncoder
    samples: Samples
    origin: Origin
    whole: bool
    columns: SampleColumns
    batch_size: int
    workers: int
    interval: float
    compare: Compare
    canaries: int
    began: int

    @property
    def options(self) -> dict[str, Any]:
        """Options of the stores. By default each chunk is checked when it is first read."""
        return {"check": "touched", **self.cache.options}

"""State that the data set mix-in keeps in a data set."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from embstore.exchange import Unreadable
from embstore_fl.a2v.stored import CacheReport
from embstore_fl.overlay import AudioEmbeddings


@dataclass(kw_only=True)
class State:
    """State of the mix-in. It is made on first use, so the data set's ``__init__`` stays unchanged.

    Attributes
    ----------
    asked : dict or None
        Arguments of the last look-up in the cache.
    counted : set of Path
        Stores whose usage counts a look-up of this data set.
    """

    owner: weakref.ref[Any] | None
    embeddings: AudioEmbeddings
    keys_by_path: dict[str, str] = field(default_factory=dict)
    from_file: Mapping[str, Any] | None = None
    report: CacheReport = field(default_factory=CacheReport)
    asked: dict[str, Any] | None = None
    counted: set[PurePath] = field(default_factory=set)
    unreadable: tuple[Unreadable, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the owner, so that a split is pickled for a worker without the whole data set."""
        return {**self.__dict__, "owner": None}

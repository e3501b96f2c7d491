"""Remove objects that no commit of a store in a bucket needs: `embstore.tidy`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from embstore._engine.write.fold_parts import TidyResult
from embstore._engine.write.fold_parts import tidy as tidy_parts
from embstore._engine.write.parts_session import PartsSession
from embstore.store.embedding_store import session_of
from embstore.store.open import open as open_store


def tidy(url: str, *, older_than: timedelta | float, storage_options: Mapping[str, Any] | None = None) -> TidyResult:
    """Delete objects of a store in a bucket that its newest commit does not list.

    These are parts that `compact` replaced, and parts of writers that were killed. The time is the server's, so the
    clock of this machine does not matter. Nothing else deletes old objects, except `erase`.

    Parameters
    ----------
    url : str
    older_than : timedelta or float
        A number is in seconds. A replaced part stays this long after its replacement, for readers of earlier commits. A
        commit under way that lists an older part uploads that again.
    storage_options : mapping, optional
        As `embstore.open` takes them.

    Returns
    -------
    TidyResult

    Raises
    ------
    NotAStoreError, ReadOnlyError, RemoteError, CommitUncertainError
    """
    if isinstance(older_than, bool) or not isinstance(older_than, timedelta | int | float):
        raise TypeError(f"expected older_than to be a timedelta or a number of seconds, found {older_than!r:.200}")
    seconds = older_than.total_seconds() if isinstance(older_than, timedelta) else older_than
    if not 0 <= seconds < math.inf:
        raise ValueError(f"expected older_than from 0 seconds on, found {seconds}")
    with open_store(url, "r+", storage_options=storage_options) as store:
        session = session_of(store)
        assert isinstance(session, PartsSession)
        return tidy_parts(session, timedelta(seconds=seconds))

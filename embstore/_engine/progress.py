"""Progress reports: calls of a function of the user, or a bar."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

Progress = Callable[[int, int], None] | bool | None
"""A function of (done, total), True for a tqdm bar, or None or False for no report."""


@contextlib.contextmanager
def reporting(progress: Progress, total: int, what: str, *, hits: int = 0) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the number of items done since the last call.

    Parameters
    ----------
    progress : callable, bool or None
    total : int
        Number of items to do.
    what : str
        Label before the bar.
    hits : int
        Number of cache hits. A bar shows them as done.
    """
    done = 0
    if progress is True:
        try:
            from tqdm.auto import tqdm
        except ImportError as error:
            raise ImportError(
                "progress=True needs tqdm: pip install tqdm, or pass a function of (done, total)"
            ) from error
        with tqdm(total=hits + total, initial=hits, desc=what, unit="row") as bar:
            bar.set_postfix(hits=hits)
            yield bar.update
        return

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if callable(progress):
            progress(done, total)

    yield advance

"""Progress reports: calls of a function of the user, or a bar, which people see by default."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, Protocol

Progress = Callable[[int, int], None] | bool | None
"""A function of (done, total), True for a tqdm bar, False for no report, or None for a bar where people see it."""


class Advance(Protocol):
    """Counts items that are done."""

    def __call__(self, count: int, *, loading: bool = False) -> None:
        """Add `count` items. With `loading`, neither they nor the time up to now count for the time left."""


def check_progress(progress: Progress) -> None:
    """Raise TypeError unless the argument is one of `Progress`, and ImportError if it needs tqdm, which is absent."""
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise TypeError(f"expected progress to be a function of (done, total), a bool or None, found {progress!r:.200}")
    if progress is True and find_spec("tqdm") is None:
        raise ImportError("progress=True needs tqdm: pip install tqdm, or pass a function of (done, total)")


@contextlib.contextmanager
def reporting(progress: Progress, total: int, what: str, *, hits: int = 0) -> Iterator[Advance]:
    """Yield a function to call with the number of items done since the last call.

    Parameters
    ----------
    progress : callable, bool or None
        None shows a bar at a terminal and in Jupyter, if tqdm is installed.
    total : int
        Number of items to do. There is no bar for 0.
    what : str
        Label before the bar.
    hits : int
        Number of cache hits. A bar shows them as done.
    """
    if total and (progress is True or (progress is None and _is_seen() and find_spec("tqdm") is not None)):
        with _bar(total=hits + total, initial=hits, desc=what, unit="row") as bar:
            bar.set_postfix(hits=hits)

            def show(count: int, *, loading: bool = False) -> None:
                if not loading:
                    bar.update(count)
                    return
                bar.unpause()
                bar.initial = bar.last_print_n = bar.n = bar.n + count
                bar.refresh()

            yield show
        return
    done = 0

    def advance(count: int, *, loading: bool = False) -> None:
        nonlocal done
        done += count
        if callable(progress):
            progress(done, total)

    yield advance


def _is_seen() -> bool:
    """Return whether standard error is a terminal, or the process is a kernel of Jupyter."""
    if sys.stderr is not None and sys.stderr.isatty():
        return True
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and "IPKernelApp" in shell.config


def _bar(**options: Any) -> Any:
    """Return a bar of tqdm: a widget in Jupyter, and text at a terminal and in a Jupyter without widgets."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")
        from tqdm.auto import tqdm
    return tqdm(**options)

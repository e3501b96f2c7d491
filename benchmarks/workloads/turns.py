"""Sides measured in turns, each with as many parts as make a time that can be trusted; and what is recorded."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import TypeVar

from benchmarks.workloads.players import Failed

T = TypeVar("T")

Side = Callable[[int, int], float]
"""Takes the number of the first part and how many, and gives the seconds of all."""


@dataclass
class Measurement:
    """Figures of several systems, taken in turns on the same rows."""

    workload: str
    data: str
    figures: dict[str, list[float]]
    _: KW_ONLY
    unit: str = "s"
    detail: str = ""
    better: str = "less"
    notes: dict[str, str] = field(default_factory=dict)
    """What is to be said of one system's figures: that it was measured once, or in part."""
    aside: dict[str, str] = field(default_factory=dict)
    """Why a system has none."""

    def median(self, name: str) -> float | None:
        return statistics.median(self.figures[name]) if self.figures.get(name) else None


@dataclass(frozen=True)
class Pace:
    """How long to measure."""

    repeat: int = 5
    aim: float = 0.3
    """Seconds that one measurement of a fast side should take at least."""
    most: float = 60.0
    """Seconds for all measurements of one side in one workload: one that needs more is measured once."""


@dataclass
class Turns:
    """Figures, notes and failures of some sides."""

    figures: dict[str, list[float]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    aside: dict[str, str] = field(default_factory=dict)


def _rotated(sides: list[T], turn: int) -> list[T]:
    first = turn % len(sides) if sides else 0
    return [*sides[first:], *sides[:first]]


def in_turns(sides: dict[str, Side], pace: Pace, *, parts: int = 1) -> Turns:
    """Measure the sides in turns, A B C B C A, so that a machine that slows down slows all.

    Who comes first changes: it finds what the last one left behind, or memory that was given back meanwhile.

    Parameters
    ----------
    sides : mapping of names to sides
    pace : Pace
    parts : int
        Batches, say, of one measurement at most. A side that is slow gets fewer; figures are for one part.
    """
    turns = Turns()
    counts: dict[str, int] = {}

    def measured(name: str, first: int, count: int) -> float | None:
        try:
            return sides[name](first, count) / count
        except Failed as error:
            turns.aside[name] = str(error)
            turns.figures.pop(name, None)
            print(f"  {name}: {error}", file=sys.stderr)
            return None

    for name in sides:  # the first time warms up, and tells how slow it is
        first = measured(name, 0, 1)
        if first is None:
            continue
        if first * (pace.repeat + 1) > pace.most:
            turns.figures[name] = [first]
            turns.notes[name] = "once"
            continue
        again = first if parts == 1 else measured(name, 1, 1)
        if again is not None:
            counts[name] = max(1, min(parts, int(pace.aim / max(again, 1e-9))))
            turns.figures[name] = []
    for turn in range(pace.repeat + 1):
        for name, count in _rotated(list(counts.items()), turn):
            figure = measured(name, turn * parts, count) if name in turns.figures else None
            if figure is not None and (turn or pace.repeat == 1):  # with all parts, the first one warms up again
                turns.figures[name].append(figure)
    return turns

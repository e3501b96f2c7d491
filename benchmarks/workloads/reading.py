"""Reading what is in the page cache: random batches, whole classes, everything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.workloads.common import batch_size, checked, measurement, opened
from benchmarks.workloads.players import Party, Player
from benchmarks.workloads.turns import Measurement, Pace, Side, in_turns

BATCHES = 100  # of one measurement at most


def row_batches(party: Party, pace: Pace) -> Iterator[Measurement]:
    yield from _batches(party, pace, "row-batches", "row")


def key_batches(party: Party, pace: Pace) -> Iterator[Measurement]:
    yield from _batches(party, pace, "key-batches", "key")


def _batches(party: Party, pace: Pace, workload: str, by: str) -> Iterator[Measurement]:
    size = batch_size(party)
    players = opened(party, workload)
    aside = checked(party, players, "check", size=size, by=by)

    def side(player: Player) -> Side:
        return lambda first, count: player.ask("batches", size=size, by=by, first=first, count=count)["seconds"]

    turns = in_turns({name: side(player) for name, player in players.items()}, pace, parts=BATCHES)
    yield measurement(party, workload, turns, aside, detail=f"batches of {size}")


def _whole(
    party: Party, pace: Pace, workload: str, check: str, given: Callable[[int], dict[str, Any]]
) -> Iterator[Measurement]:
    players = opened(party, workload)
    aside = checked(party, players, check)

    def side(player: Player) -> Side:
        return lambda first, count: player.ask(workload.replace("-", "_"), **given(first))["seconds"]

    turns = in_turns({name: side(player) for name, player in players.items()}, pace)
    yield measurement(party, workload, turns, aside)


def all_rows(party: Party, pace: Pace) -> Iterator[Measurement]:
    """Read all rows to RAM."""
    yield from _whole(party, pace, "all-rows", "check_whole", lambda turn: {})


def one_class(party: Party, pace: Pace) -> Iterator[Measurement]:
    """Read a class that has a tenth of the rows."""
    yield from _whole(party, pace, "one-class", "check_classes", lambda turn: {})


def ten_classes(party: Party, pace: Pace) -> Iterator[Measurement]:
    """Read ten random classes of 300: three hundredths of the rows, all over the store."""
    yield from _whole(party, pace, "ten-classes", "check_classes", lambda turn: {"turn": turn})

"""A shuffled epoch through torch's DataLoader, with no and with two workers.

Workers start with the first, unmeasured epoch and stay. A system that would take too long goes through a part of the
epoch; its time is that of the whole at the same pace, and marked so.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.workloads.common import OURS, batch_size, measurement, opened, pairs
from benchmarks.workloads.players import Failed, Party, Player
from benchmarks.workloads.turns import Measurement, Pace, Side, in_turns

_TRIED = 8  # batches, to see how long an epoch takes


def epoch(party: Party, pace: Pace) -> Iterator[Measurement]:
    yield _epoch(party, pace, party.names("epoch"), 0)


def epoch_of_workers(party: Party, pace: Pace) -> Iterator[Measurement]:
    for pair in pairs(party.names("epoch")):  # two at a time: each has two processes more
        yield _epoch(party, pace, pair, 2)


def _epoch(party: Party, pace: Pace, names: list[str], workers: int) -> Measurement:
    size = batch_size(party)
    whole = -(-len(party.source) // size)
    notes: dict[str, str] = {}
    aside: dict[str, str] = {}
    players = opened(party, "epoch", names)
    sides: dict[str, Side] = {}
    for name, player in players.items():
        try:
            batches = _affordable(player, size, workers, whole, pace)
        except Failed as error:
            aside[name] = str(error)
            continue
        if batches < whole:
            notes[name] = f"from {batches:,} of {whole:,} batches"
        sides[name] = _side(player, size, workers, batches, whole)
    turns = in_turns(sides, pace)
    for name, player in players.items():
        if name != OURS and not player.ended:
            player.close()  # and with it its workers; ours are needed for the next pair
    turns.notes = {name: ", ".join(filter(None, (notes.get(name), turns.notes.get(name)))) for name in turns.figures}
    return measurement(party, "epoch", turns, aside, detail=f"{workers} workers")


def _affordable(player: Player, size: int, workers: int, whole: int, pace: Pace) -> int:
    """Return how many batches fit into the time of one measurement."""
    tried = min(whole, _TRIED)
    player.ask("epoch", size=size, workers=workers, batches=tried)
    seconds = player.ask("epoch", size=size, workers=workers, batches=tried)["seconds"] / tried
    affordable = int(pace.most / (pace.repeat + 2) / seconds)
    return whole if affordable >= whole else max(tried, affordable)


def _side(player: Player, size: int, workers: int, batches: int, whole: int) -> Side:
    def run(first: int, count: int) -> float:
        answer = player.ask("epoch", size=size, workers=workers, batches=batches)
        return answer["seconds"] / answer["batches"] * whole

    return run

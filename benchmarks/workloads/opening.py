"""A new process: from nothing to its first batch, and the memory it has then.

What its imports take is counted apart. Memory is resident memory grown since the imports: what is the process's own
(anonymous), and what are pages of files that it maps, which the page cache has anyway and can take back.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.workloads.common import batch_size, measurement
from benchmarks.workloads.pagecache import warm
from benchmarks.workloads.players import Failed, Party, Player
from benchmarks.workloads.turns import Measurement, Pace, Turns

MOMENTS = ("after open", "after 1 % of the rows", "after one epoch")
KINDS = ("anonymous", "file")
Figures = dict[tuple[str, str], float]


def new_process(party: Party, pace: Pace) -> Iterator[Measurement]:
    """Start a process, open the store, read one random batch, then a hundredth of the rows, then all."""
    taken: dict[tuple[str, str], Turns] = {}
    aside: dict[str, str] = {}
    notes: dict[str, str] = {}
    for turn in range(pace.repeat):  # none of them warms up the next
        for name in party.names("new-process"):
            if name in aside:
                continue
            warm(party.store_of(name))  # a turn takes minutes
            try:
                figures = _one(party, name, pace, turn, notes)
            except Failed as error:
                aside[name] = str(error)
                continue
            for key, figure in figures.items():
                taken.setdefault(key, Turns()).figures.setdefault(name, []).append(figure)
    for (workload, detail), turns in taken.items():
        if "one epoch" in detail:
            turns.notes = notes
        unit = "MB" if workload == "memory" else "s"
        yield measurement(party, workload, turns, aside, unit=unit, detail=detail)


def _one(party: Party, name: str, pace: Pace, turn: int, notes: dict[str, str]) -> Figures:
    size, rows = batch_size(party), len(party.source)
    hundredth = max(1, rows // 100)
    seconds = pace.most / pace.repeat
    player = party.player(name)
    try:
        before = player.ask("memory")
        opening = player.ask("open", folder=str(party.store_of(name)))["seconds"]
        figures = _grown(player, before, MOMENTS[0])
        reading = player.ask("batches", size=size, by="native", first=turn, count=1)["seconds"]
        figures |= {("first-batch", ""): opening + reading, ("first-batch", "imports"): player.imports}
        _passed(player, min(size, hundredth), -(-hundredth // size), seconds)
        figures |= _grown(player, before, MOMENTS[1])
        if (done := _passed(player, size, -(-rows // size), seconds)) < rows:
            notes[name] = f"{done:,} rows only"
        return figures | _grown(player, before, MOMENTS[2])
    finally:
        player.stop()


def _grown(player: Player, before: dict[str, float], moment: str) -> Figures:
    now = player.ask("memory")
    return {("memory", f"{kind}, {moment}"): now[kind] - before[kind] for kind in KINDS}


def _passed(player: Player, size: int, batches: int, seconds: float) -> int:
    return int(player.ask("pass_through", size=size, batches=batches, seconds=seconds)["rows"])

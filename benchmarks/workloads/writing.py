"""Writing all rows at once, appending a few at a time, and what lies on the disk then.

Durably, and where a system can do without, not. A durable side ends when its bytes are on the disk: by the library,
where it syncs; else each file that was written is synced by the adapter, which adds no guarantee of order.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks.workloads.common import measurement
from benchmarks.workloads.players import Failed, Party
from benchmarks.workloads.turns import Measurement, Pace, Side, Turns, in_turns

APPENDS, ROWS = 100, 64


def _detail(sync: bool) -> str:
    return "durable" if sync else "not synced"


def _syncing(party: Party, names: list[str]) -> dict[str, str]:
    """Say who syncs each system."""
    return {name: party.systems[name][1].syncs for name in names}


def bulk_write(party: Party, pace: Pace, *, sync: bool = True) -> Iterator[Measurement]:
    """Write all rows."""
    sides = {name: _writing(party, name, sync) for name in party.names("bulk-write")}
    yield _noted(party, "bulk-write", in_turns(sides, pace), sync)


def _writing(party: Party, name: str, sync: bool) -> Side:
    folder = party.folder / "bulk"

    def run(first: int, count: int) -> float:
        try:
            player = party.at_work(name)
            player.close()
            return player.ask("write", folder=str(folder), sync=sync)["seconds"]
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.sync()  # or the next side's first fsync waits for the removal

    return run


def _noted(party: Party, workload: str, turns: Turns, sync: bool, **more: str) -> Measurement:
    syncing = _syncing(party, list(turns.figures))
    for name, who in syncing.items():
        said = {
            "always": "" if sync else "synced all the same",
            "not at all": "synced by the benchmark" if sync else "",
        }
        turns.notes[name] = ", ".join(filter(None, (turns.notes.get(name), said.get(who))))
    return measurement(party, workload, turns, {}, detail=_detail(sync), **more)


def append(party: Party, pace: Pace, *, sync: bool = True) -> Iterator[Measurement]:
    """Append to the rows there are, each append a commit; figures are for one append."""
    place = party.folder / "appended"
    names = party.names("append")
    for name in names:
        shutil.copytree(party.store_of(name), place / party.store_of(name).name)
    os.sync()  # the copies' pages are not to be written by the first fsync
    taken: dict[str, int] = {}
    sides = {name: _appending(party, name, place / party.store_of(name).name, sync, taken) for name in names}
    try:
        turns = in_turns(sides, pace, parts=APPENDS // pace.repeat)
        for name in list(turns.figures):
            _check_last(party, name, place / party.store_of(name).name, turns, taken[name] - 1)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    yield _noted(party, "append", turns, sync)


def _appending(party: Party, name: str, folder: Path, sync: bool, taken: dict[str, int]) -> Side:
    def run(first: int, count: int) -> float:
        player = party.at_work(name)
        player.open(folder, "a", sync=sync)
        start = taken.get(name, 0)
        taken[name] = start + count
        return sum(player.ask("append", count=ROWS, times=count, first=start)["seconds"])

    return run


def _check_last(party: Party, name: str, folder: Path, turns: Turns, turn: int) -> None:
    """Open a store anew, and look whether the last rows are there."""
    try:
        player = party.at_work(name)
        player.open(folder)
        player.ask("check_last", count=ROWS, turn=turn)
        player.close()
    except Failed as error:
        turns.aside[name] = f"what was appended is not there: {error}"
        del turns.figures[name]


def bytes_on_disk(party: Party, pace: Pace) -> Iterator[Measurement]:
    """Add up the blocks that are allocated to each store's files."""
    turns = Turns({name: [_allocated(party.store_of(name))] for name in party.names("disk")})
    yield measurement(party, "disk", turns, {}, unit="bytes")


def _allocated(folder: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))

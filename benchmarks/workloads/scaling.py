"""How opening, lookups, appends and memory grow with the number of keys; rows are short, so that keys are what counts.

Systems that keep their keys in a file beside the values are stood for by one of them, np.memmap's.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.systems import System
from benchmarks.workloads.common import OURS, measurement
from benchmarks.workloads.players import Failed, Party
from benchmarks.workloads.source import make_source
from benchmarks.workloads.turns import Measurement, Pace, Turns

DIM, LOOKUPS, APPENDS, ROWS = 8, 256, 5, 64
STANDS_FOR_KEYS_BESIDE = "memmap + JSON"
DETAILS = (
    ("open and first lookup", "s"),
    ("256 keys", "s"),
    ("durable append", "s"),
    ("anonymous memory", "MB"),
    ("write", "s"),
)


def with_keys(systems: dict[str, tuple[str, System]]) -> dict[str, tuple[str, System]]:
    """Return the systems that find keys by a way of their own, and the one that stands for the others."""

    def own(system: System) -> bool:
        kind = type(system)
        return kind.find is not System.find or kind.rows_of is not System.rows_of

    return {
        name: entry
        for name, entry in systems.items()
        if entry[1].takes_part is None
        and (name == STANDS_FOR_KEYS_BESIDE or own(entry[1]))
        and not name.startswith(f"{OURS},")  # their keys are stored alike
    }


def scaling(
    folder: Path, systems: dict[str, tuple[str, System]], counts: list[int], pace: Pace, patience: float
) -> Iterator[Measurement]:
    aside: dict[str, str] = {}
    for count in sorted(counts):
        source = make_source(folder / f"keys-{count}", (count, DIM))
        turns = {detail: Turns() for detail, _ in DETAILS}
        party = Party(source, folder / "scaling", with_keys(systems), patience, dict(aside))
        for name in party.names("scaling"):
            print(f"  {count:,} keys, {name} …", file=sys.stderr, flush=True)
            try:
                _one(party, name, pace, turns)
            except Failed as error:
                aside[name] = f"with {count:,} keys: {error}"
            party.clear()
        party.aside |= aside
        for detail, unit in DETAILS:
            yield measurement(party, "scaling", turns[detail], {}, unit=unit, detail=detail)
        shutil.rmtree(source.folder)


def _one(party: Party, name: str, pace: Pace, turns: dict[str, Turns]) -> None:
    figures: dict[str, list[float]] = {detail: [] for detail, _ in DETAILS}
    store = party.store_of(name)
    writer = party.player(name)
    try:
        figures["write"] = [writer.ask("write", folder=str(store))["seconds"]]
        for turn in range(pace.repeat + 1):
            reader = party.player(name)
            try:
                before = reader.ask("memory")["anonymous"]
                opening = reader.ask("open", folder=str(store))["seconds"]
                looking = reader.ask("batches", size=LOOKUPS, by="find", first=turn, count=1)["seconds"]
                grown = reader.ask("memory")["anonymous"] - before
                again = reader.ask("batches", size=LOOKUPS, by="find", first=turn + 1, count=10)["seconds"] / 10
            finally:
                reader.stop()
            if turn:
                figures["open and first lookup"].append(opening + looking)
                figures["256 keys"].append(again)
                figures["anonymous memory"].append(grown)
        writer.ask("open", folder=str(store), mode="a")
        taken = writer.ask("append", count=ROWS, times=APPENDS + 1, first=0)["seconds"]
        figures["durable append"] = taken[1:]
    finally:
        writer.stop()
        for detail, _ in DETAILS:
            if figures[detail]:
                turns[detail].figures[name] = figures[detail]

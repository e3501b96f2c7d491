"""Several processes on one store: readers alone, and readers while another process appends."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks.workloads.common import OURS, batch_size, measurement
from benchmarks.workloads.players import Failed, Party, Player
from benchmarks.workloads.turns import Measurement, Pace, Turns

READERS = (1, 2, 4)
_APPENDED = 64


def readers(party: Party, pace: Pace) -> Iterator[Measurement]:
    """Count the rows that 1, 2 and 4 processes read in a second, all together; two systems at a time, in turns."""
    names = [name for name in party.names("readers") if name != OURS]
    for name in names:
        turns = {count: Turns() for count in READERS}
        try:
            crew = {one: _crew(party, one, party.store_of(one), max(READERS)) for one in (OURS, name)}
        except Failed as error:
            party.aside[name] = str(error)
            continue
        try:
            for count in READERS:
                for turn in range(pace.repeat + 1):
                    for one, players in crew.items():
                        rate = _rate(players[:count], batch_size(party), pace.aim, turn)
                        if turn:
                            turns[count].figures.setdefault(one, []).append(rate)
        except Failed as error:
            turns[count].aside[name] = str(error)
        finally:
            _dismissed([player for players in crew.values() for player in players])
        for count, taken in turns.items():
            if taken.figures:
                yield measurement(
                    party, "readers", taken, {}, unit="rows/s", detail=f"{count} processes", better="more"
                )


def _crew(party: Party, name: str, folder: Path, count: int, mode: str = "r") -> list[Player]:
    players: list[Player] = []
    try:
        for _ in range(count):
            players.append(party.player(name))
            players[-1].ask("open", folder=str(folder), mode=mode)
    except Failed:
        _dismissed(players)
        raise
    return players


def _dismissed(players: list[Player]) -> None:
    for player in players:
        player.stop()


def _rate(players: list[Player], size: int, seconds: float, turn: int) -> float:
    for seed, player in enumerate(players):
        player.tell("spin", size=size, seconds=seconds, seed=10 * turn + seed)
    answers = [player.answer() for player in players]
    return sum(answer["rows"] for answer in answers) / max(answer["seconds"] for answer in answers)


def readers_and_writer(party: Party, pace: Pace) -> Iterator[Measurement]:
    """Let two processes read while a third appends, durably, as fast as it can."""
    rates, commits = Turns(), Turns()
    chosen = [name for name in party.names("readers-and-writer") if party.systems[name][1].beside_writer]
    for _ in range(pace.repeat):
        for name in chosen:
            if name in rates.aside:
                continue
            try:
                rate, committed = _beside(party, name, pace)
            except Failed as error:
                rates.aside[name] = str(error)
                continue
            rates.figures.setdefault(name, []).append(rate)
            commits.figures.setdefault(name, []).append(committed)
    aside = {name: "not made for it" for name in party.names("readers-and-writer") if name not in chosen}
    for turns, unit, detail in ((rates, "rows/s", "what two read"), (commits, "commits/s", "what one appends")):
        yield measurement(party, "readers-and-writer", turns, aside, unit=unit, detail=detail, better="more")


def _beside(party: Party, name: str, pace: Pace) -> tuple[float, float]:
    folder = party.folder / "shared"
    shutil.copytree(party.store_of(name), folder)
    players: list[Player] = []
    try:
        players += _crew(party, name, folder, 2)
        writer = _crew(party, name, folder, 1, "a")[0]
        players.append(writer)
        seconds = max(pace.aim, 0.5)
        writer.tell("keep_appending", count=_APPENDED, seconds=seconds, first=0)
        rate = _rate(players[:2], batch_size(party), seconds, 0)
        answer = writer.answer()
        return rate, answer["commits"] / answer["seconds"]
    finally:
        _dismissed(players)
        shutil.rmtree(folder, ignore_errors=True)

"""What workloads share: opened systems, and measurements made of turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.workloads.players import Failed, Party, Player
from benchmarks.workloads.turns import Measurement, Turns

OURS = "embstore"
"""With which all others are compared."""


def batch_size(party: Party) -> int:
    """Rows of a random batch: 256, or 16 of the long ones."""
    return 256 if party.source.nbytes // len(party.source) < 2**20 else 16


def opened(party: Party, workload: str, names: Sequence[str] | None = None) -> dict[str, Player]:
    """Open the store of each system that takes part; those that can't are put aside."""
    players: dict[str, Player] = {}
    for name in party.names(workload) if names is None else names:
        try:
            players[name] = party.at_work(name)
            players[name].open(party.store_of(name))
        except Failed as error:
            party.aside[name] = str(error)
            players.pop(name, None)
    return players


def checked(party: Party, players: dict[str, Player], what: str, **given: Any) -> dict[str, str]:
    """Compare what each system gives with what it was given; drops the players that fail, and says why."""
    aside: dict[str, str] = {}
    for name, player in list(players.items()):
        try:
            player.ask(what, **given)
        except Failed as error:
            aside[name] = str(error)
            del players[name]
    return aside


def measurement(party: Party, workload: str, turns: Turns, aside: dict[str, str], **more: Any) -> Measurement:
    whole = {**party.aside, **aside, **turns.aside}
    return Measurement(workload, party.source.label, turns.figures, notes=turns.notes, aside=whole, **more)


def pairs(names: Sequence[str]) -> list[list[str]]:
    """Pair each system with ours, for what can't be done with all of them at once."""
    others = [name for name in names if name != OURS]
    return [[OURS, name] for name in others] if OURS in names else [[name] for name in others]

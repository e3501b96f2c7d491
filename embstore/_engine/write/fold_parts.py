"""Write parts of a store in a bucket anew: to fold many into few, and to erase rows. And remove what is left over."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Final

import numpy as np

from embstore._engine.format.parts import DEAD, FOLDED, PARTS, Listing, Part
from embstore._engine.format.zarr_layout import MAX_METADATA_BYTES, METADATA_NAME
from embstore._engine.io.object_store import Listed
from embstore._engine.pickles import PickledByName
from embstore._engine.read.column import Rows
from embstore._engine.read.key_index import KeyIndex
from embstore._engine.read.parts_snapshot import PartsSnapshot
from embstore._engine.read.snapshot import Snapshot
from embstore._engine.write.build_part import copy_part, temporary
from embstore._engine.write.parts_session import PartsSession, add_list
from embstore._engine.write.record_edits import new_id
from embstore.errors import EraseUnfinishedError, RemoteError, StoreChangedError

logger = logging.getLogger("embstore")

_FOLDED_NBYTES: Final = 2**30
"""Bytes of a part that `fold` makes of smaller ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TidyResult(PickledByName):
    """The objects that `embstore.tidy` deleted.

    Attributes
    ----------
    objects : int
    nbytes : int
    """

    objects: int
    nbytes: int


def fold(session: PartsSession) -> None:
    """Fold neighbouring parts into parts of about 1 GiB without deleted rows, in one commit for each.

    The old objects stay for readers of earlier commits, until `tidy` removes them.
    """
    session.check_writable()
    done: set[str] = set()
    with session.held():
        session.move_to_newest()
        while group := _next_group(session.parts_snapshot.listing, done):
            try:
                done.add(_folded(session, group))
            except StoreChangedError:  # an erase deleted one of the parts meanwhile
                session.move_to_newest()


def _next_group(listing: Listing, done: set[str]) -> tuple[Part, ...] | None:
    """Return the next neighbouring parts to fold, or None."""
    group: list[Part] = []
    for part in (*listing.parts, None):
        nbytes = sum(one.nbytes for one in group)
        if part is not None and part.name not in done and (not group or nbytes + part.nbytes <= _FOLDED_NBYTES):
            group.append(part)
            continue
        if len(group) > 1 or any(one.dead for one in group):
            return tuple(group)
        group = [] if part is None or part.name in done else [part]
    return None


def _folded(session: PartsSession, group: tuple[Part, ...]) -> str:
    """Fold a group of parts, unless another writer changes them meanwhile. Return the name of the new part."""
    with temporary() as folder:
        snapshot = session.parts_snapshot
        rows = snapshot.live_rows[np.isin(snapshot.live_rows, _rows_of(snapshot, group))]
        built = copy_part(Path(folder), snapshot.listing.seq + 1, snapshot, rows) if len(rows) else None
        if built:
            session.upload(built)
        listed = False

        def change(listing: Listing, _: str) -> Listing | None:
            nonlocal listed
            place = _place_of(listing, group)
            listed = place is not None and (built is None or _above(built.part, listing))
            if place is None or not listed:
                return None
            of = tuple(name for part in group for name in (*part.of, part.name))[-FOLDED:]
            new = () if built is None else (replace(built.part, of=of),)
            parts = (*listing.parts[:place], *new, *listing.parts[place + len(group) :])
            # Row numbers change if rows are left out.
            dead = any(part.dead for part in group)
            empty = replace(listing.empty, generation=new_id()) if dead else listing.empty
            # Without a new part, an empty list has the time from which the old objects stay for their readers.
            by = built.part.name if built else add_list(session.bucket, listing, b"")
            gone = dict.fromkeys(_objects(group), by)
            return replace(listing, parts=parts, empty=empty, retired={**listing.retired, **gone})

        session.swap(change, lambda: built.part.name if built else None)
        if not listed:
            logger.info("%s: its parts changed while they were compacted; those stay as they are", session.path)
            return group[0].name
        return built.part.name if built else ""


def _above(part: Part, listing: Listing) -> bool:
    """Return whether an uploaded part can't have been removed yet."""
    return int(part.name.partition("-")[0]) >= listing.floor


def _place_of(listing: Listing, group: tuple[Part, ...]) -> int | None:
    """Return the place of parts that are listed as they were, with the same deleted rows."""
    for place in range(len(listing.parts) - len(group) + 1):
        if listing.parts[place : place + len(group)] == group:
            return place
    return None


def _rows_of(snapshot: PartsSnapshot, group: Iterable[Part]) -> Rows:
    """Return the numbers of the rows of some parts."""
    names, start, found = {part.name for part in group}, 0, [np.empty(0, np.int64)]
    for part in snapshot.listing.parts:
        if part.name in names:
            found.append(np.arange(start, start + part.rows))
        start += part.rows
    return np.concatenate(found)


def _objects(parts: Iterable[Part]) -> list[str]:
    """Return the objects and folders of parts."""
    return [
        name
        for part in parts
        for name in (f"{PARTS}/{part.name}", *([f"{DEAD}/{part.dead.name}"] if part.dead else []))
    ]


def erase_rows(session: PartsSession, choose: Callable[[Snapshot, KeyIndex], Rows]) -> tuple[Rows, int]:
    """Write the parts with deleted rows, and with the chosen rows, anew without them, and delete the old objects.

    The commit raises the floor above all uploads so far, so no later commit can list one of them. All objects that are
    not listed are deleted with the old parts: they may hold the same rows.

    Parameters
    ----------
    session : PartsSession
    choose : callable
        Takes the newest commit, and returns the rows to erase. It raises for keys that are not stored.

    Returns
    -------
    Rows
        The erased rows, as they were numbered before.
    int
        The number of parts that were written anew.

    Raises
    ------
    EraseUnfinishedError
        The rows are no longer listed, but objects with their bytes are left. The next erase deletes them first.
    """
    session.check_writable()
    results: dict[str, tuple[Rows, int]] = {}
    with session.held(), temporary() as folder:
        _remove_unlisted(session)

        def change(listing: Listing, attempt: str) -> Listing:
            snapshot = session.parts_snapshot
            rows = choose(snapshot, session.index)
            kept = np.setdiff1d(snapshot.live_rows, rows)
            parts: list[Part] = []
            start = written = 0
            for part in listing.parts:
                own = kept[(kept >= start) & (kept < start + part.rows)]
                start += part.rows
                if len(own) == part.rows:
                    parts.append(part)
                    continue
                written += 1
                if len(own):
                    place = Path(folder) / f"{attempt}-{written}"
                    place.mkdir()
                    built = copy_part(place, listing.seq + 1, snapshot, own)
                    session.upload(built)
                    parts.append(replace(built.part, of=(*part.of, part.name)[-FOLDED:]))
            results[attempt] = rows, written
            empty = replace(listing.empty, generation=new_id(), epoch=listing.empty.epoch + 1)
            return replace(listing, parts=tuple(parts), empty=empty, floor=listing.seq + 2, retired={})

        attempt = session.swap(change)
        _remove_unlisted(session)
    return results[attempt]


def _remove_unlisted(session: PartsSession) -> None:
    """Delete all objects below the floor that are not listed.

    Raises
    ------
    EraseUnfinishedError
    """
    try:
        unlisted = _unlisted(session)
        _remove(session, [one for one in unlisted if _seq(one) < session.parts_snapshot.listing.floor])
    except RemoteError as error:
        raise EraseUnfinishedError(session.path, str(error)) from error


def tidy(session: PartsSession, older_than: timedelta) -> TidyResult:
    """Delete objects that no commit needs: of writers that were killed, and of parts that were replaced.

    The time is the server's: that of the record after a commit, and of each object.

    Parameters
    ----------
    session : PartsSession
    older_than : timedelta
        Replaced parts stay this long after the part that replaced them, for readers of earlier commits.
    """
    session.check_writable()
    with session.held():
        return _tidied(session, older_than)


def _tidied(session: PartsSession, older_than: timedelta) -> TidyResult:
    def raised(listing: Listing, _: str) -> Listing:
        return replace(listing, floor=listing.seq + 2)

    session.swap(raised)
    record = session.bucket.read(METADATA_NAME, most=MAX_METADATA_BYTES)
    assert record is not None
    limit = record[2] - older_than
    session.move_to_newest()
    listing = session.parts_snapshot.listing
    found = _objects_of(session)  # after the record: what is retired from now on is listed in it, and stays
    written = {_root_of(one.name).rpartition("/")[2]: one.modified for one in found}
    removable = []
    for one in _not_in(found, listing):
        replacement = listing.retired.get(_root_of(one.name))
        when = one.modified if replacement is None else written.get(replacement, one.modified)
        if when <= limit and (replacement is not None or _seq(one) < listing.floor):
            removable.append(one)
    removed = _remove(session, removable)
    left = {_root_of(one.name) for one in _unlisted(session)}
    gone = session.parts_snapshot.listing.retired.keys() - left  # also those that a killed `tidy` removed

    def forgotten(listing: Listing, _: str) -> Listing | None:
        kept = {name: by for name, by in listing.retired.items() if name not in gone}
        return None if kept == listing.retired else replace(listing, retired=kept)

    session.swap(forgotten)
    return removed


def _unlisted(session: PartsSession) -> list[Listed]:
    """Return the objects of parts and deleted rows that the newest commit does not list."""
    session.move_to_newest()
    return _not_in(_objects_of(session), session.parts_snapshot.listing)


def _objects_of(session: PartsSession) -> list[Listed]:
    return [one for folder in (PARTS, DEAD) for one in session.bucket.listed(f"{folder}/")]


def _not_in(objects: list[Listed], listing: Listing) -> list[Listed]:
    listed = listing.objects
    return [one for one in objects if _root_of(one.name) not in listed]


def _root_of(name: str) -> str:
    """Return the name of the part, or of the list of deleted rows, to which an object belongs."""
    return "/".join(name.split("/")[:2])


def _seq(one: Listed) -> int:
    """Return the number in the name of an object. An object of others has a high one, and stays."""
    number = one.name.split("/")[1].partition("-")[0]
    return int(number) if number.isascii() and number.isdigit() else 2**63


def _remove(session: PartsSession, objects: list[Listed]) -> TidyResult:
    session.bucket.delete(one.name for one in objects)
    return TidyResult(objects=len(objects), nbytes=sum(one.nbytes for one in objects))

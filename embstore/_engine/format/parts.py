"""The record of a store of parts: the list of its parts instead of rows of its own. Pure.

A part is a store of format 1 that never changes. `docs/format.md` specifies both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from embstore._engine.format.parse_record import record_from_json
from embstore._engine.format.record import ArrayState, Record, SchemaError, Tail, offsets_name
from embstore._engine.format.values import checksum, crc32c

PARTS: Final = "parts"
"""The feature in `requires`, and the folder of the parts."""
DEAD: Final = "dead"
"""The folder of the numbers of deleted rows."""
RECENT: Final = 128
"""Ids of the last commits that a record keeps: a writer whose answer was lost looks for its own."""
FOLDED: Final = 1024
"""Ids of folded parts that a part keeps, for the same reason."""
_PART = re.compile(r"[0-9]{8,15}-[0-9a-f]{16}(\.zip)?")
_DEAD = re.compile(r"[0-9]{8,15}-[0-9a-f]{16}")
_HEX = re.compile(r"[0-9a-f]+")
_MAX_COUNT: Final = 2**48


@dataclass(frozen=True, slots=True, kw_only=True)
class Dead:
    """The deleted rows of a part: the name of their object, their number, and the CRC-32C of the object."""

    name: str
    rows: int
    crc32c: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part.

    Attributes
    ----------
    name : str
        ``<seq>-<random>.zip``, or without the ending for a folder.
    rows, nbytes : int
    tokens : mapping of str to int
        Tokens of each ragged field.
    digest : str
        128 bits of BLAKE2b over its ``zarr.json``, which has the checksums of its other files.
    dead : Dead, optional
    of : tuple of str
        Names of the parts that were folded into this one, the last ones.
    """

    name: str
    rows: int
    nbytes: int
    digest: str
    tokens: Mapping[str, int] = field(default_factory=dict)
    dead: Dead | None = None
    of: tuple[str, ...] = ()

    @property
    def zipped(self) -> bool:
        """Whether the part is one object."""
        return self.name.endswith(".zip")

    @property
    def live(self) -> int:
        """Number of rows that are not deleted."""
        return self.rows - (self.dead.rows if self.dead else 0)

    def to_json(self) -> dict[str, Any]:
        """Return the part as JSON values."""
        dead = self.dead and {"name": self.dead.name, "rows": self.dead.rows, "crc32c": self.dead.crc32c}
        return {
            "name": self.name,
            "rows": self.rows,
            "nbytes": self.nbytes,
            "digest": self.digest,
            **({"tokens": dict(self.tokens)} if self.tokens else {}),
            **({"dead": dead} if dead else {}),
            **({"of": list(self.of)} if self.of else {}),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The record of a store of parts.

    Attributes
    ----------
    empty : Record
        Config, fields, columns and options, with arrays that have no rows.
    id : str
        Given when the store is made, and never changed. Mirrors of another store differ in it.
    seq : int
        Number of commits.
    floor : int
        Parts and lists of deleted rows with a smaller number that are not listed may be deleted at any time.
    parts : tuple of Part
    retired : mapping of str to str
        Objects that are no longer listed, and the name of the part or the list of deleted rows that replaced each.
    recent : tuple of str
        Ids of the last commits.
    """

    empty: Record
    id: str
    seq: int = 0
    floor: int = 0
    parts: tuple[Part, ...] = ()
    retired: Mapping[str, str] = field(default_factory=dict)
    recent: tuple[str, ...] = ()

    @property
    def commit_id(self) -> str:
        """Id of this commit."""
        return self.empty.commit_id

    @property
    def rows(self) -> int:
        """Number of rows, with the deleted ones."""
        return sum(part.rows for part in self.parts)

    @property
    def objects(self) -> set[str]:
        """Objects and folders that the record names, relative to the store."""
        dead = {f"{DEAD}/{part.dead.name}" for part in self.parts if part.dead}
        return dead | {f"{PARTS}/{part.name}" for part in self.parts}

    def as_one(self) -> Record:
        """Return the record of one store with the rows of all parts, as `Snapshot` reads it.

        The number of classes is not known: it is the length 0.
        """
        rows = self.rows
        lengths = dict.fromkeys(self.empty.sample_arrays, rows)
        for name in self.empty.ragged:
            lengths[name] = sum(part.tokens[name] for part in self.parts)
            lengths[offsets_name(name)] = rows + 1
        lengths["dead_rows"] = sum(part.dead.rows for part in self.parts if part.dead)
        arrays = {name: replace(self.empty.arrays[name], length=length) for name, length in lengths.items()}
        return replace(self.empty.with_arrays(**arrays), rows=rows)

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values, with its checksum."""
        value = self.empty.to_json()
        value |= {
            "requires": [*value["requires"], PARTS],
            "id": self.id,
            "seq": self.seq,
            "floor": self.floor,
            "parts": [part.to_json() for part in self.parts],
            "retired": dict(self.retired),
            "recent": list(self.recent),
        }
        value["checksum"] = checksum(value)
        return value


def without_rows(record: Record) -> Record:
    """Return a record with the same fields and columns, whose arrays have no rows."""
    columns = {name: replace(spec, array=name) for name, spec in record.columns.items()}
    renamed = {spec.array: name for name, spec in record.columns.items()}
    arrays = {
        renamed.get(name, name): replace(array, length=0, digest=None, tail=None)
        for name, array in record.arrays.items()
    }
    return replace(record, rows=0, erasing=None, dropped=(), columns=columns, arrays=arrays)


def as_empty(record: Record) -> Record:
    """Return the record of an empty store with the fields and columns of another: offsets begin with a 0."""
    empty, zero = without_rows(record), Tail(nbytes=8, crc32c=crc32c(bytes(8)))
    starts = {name: replace(empty.arrays[name], length=1, tail=zero) for name in map(offsets_name, empty.ragged)}
    return empty.with_arrays(**starts)


def fitted(array: ArrayState, length: int) -> ArrayState:
    """Return an array whose chunks are no larger than its rows, and still fill pages where they did before."""
    if not length or length >= array.rows_per_chunk:
        return array
    # Halved as long as the rows fit: halves of a power of two fill pages for the longest time.
    size = array.rows_per_chunk
    while size % 2 == 0 and size // 2 >= length:
        size //= 2
    return replace(array, rows_per_chunk=size)


def listing_from_json(value: Any) -> Listing:
    """Parse the record of a store of parts, whose format number, features and checksum were checked.

    Raises
    ------
    SchemaError
    """
    plain = {name: member for name, member in value.items() if name not in _OWN}
    plain["requires"] = [feature for feature in value.get("requires", ()) if feature != PARTS]
    empty = record_from_json(plain)
    problems: list[str] = []
    if any(array.length > (name in map(offsets_name, empty.ragged)) for name, array in empty.arrays.items()):
        problems.append("arrays: expected arrays without rows")
    parts = tuple(_part(one, empty, f"parts.{i}", problems) for i, one in enumerate(_list(value, "parts", problems)))
    names = [part.name for part in parts]
    if len(set(names)) < len(names):
        problems.append("parts: expected different names")
    retired = value.get("retired")
    if not isinstance(retired, dict) or not all(isinstance(text, str) for pair in retired.items() for text in pair):
        problems.append("retired: expected names under names")
        retired = {}
    recent = tuple(one for one in _list(value, "recent", problems) if isinstance(one, str))
    identity = value.get("id")
    if not isinstance(identity, str) or not _HEX.fullmatch(identity):
        problems.append(f"id: expected hexadecimal digits, found {identity!r:.200}")
    seq, floor = (_count(value.get(name), name, problems) for name in ("seq", "floor"))
    if problems:
        raise SchemaError(problems)
    return Listing(empty=empty, id=str(identity), seq=seq, floor=floor, parts=parts, retired=retired, recent=recent)


_OWN: Final = frozenset(("id", "seq", "floor", "parts", "retired", "recent", "checksum"))


def _list(value: Any, name: str, problems: list[str]) -> list[Any]:
    found = value.get(name)
    if not isinstance(found, list):
        problems.append(f"{name}: expected a list, found {found!r:.200}")
        return []
    return found


def _count(value: Any, place: str, problems: list[str], *, least: int = 0) -> int:
    if type(value) is not int or not least <= value <= _MAX_COUNT:
        problems.append(f"{place}: expected a number from {least}, found {value!r:.200}")
        return least
    return value


def _part(value: Any, empty: Record, place: str, problems: list[str]) -> Part:
    get = value.get if isinstance(value, dict) else {}.get
    name, digest, dead, tokens = get("name"), get("digest"), get("dead"), get("tokens", {})
    if not isinstance(name, str) or not _PART.fullmatch(name):
        problems.append(f"{place}.name: expected the name of a part, found {name!r:.200}")
    if not isinstance(digest, str) or len(digest) != 32 or not _HEX.fullmatch(digest):
        problems.append(f"{place}.digest: expected 32 hexadecimal digits, found {digest!r:.200}")
    rows = _count(get("rows"), f"{place}.rows", problems, least=1)
    if not isinstance(tokens, dict) or tokens.keys() != set(empty.ragged):
        problems.append(f"{place}.tokens: expected a number for each of {empty.ragged}, found {tokens!r:.200}")
        tokens = dict.fromkeys(empty.ragged, 0)
    of = get("of", [])
    if not isinstance(of, list) or not all(isinstance(one, str) for one in of):
        problems.append(f"{place}.of: expected names, found {of!r:.200}")
        of = []
    found = None
    if dead is not None:
        part_of = dead.get if isinstance(dead, dict) else {}.get
        list_name = part_of("name")
        if not isinstance(list_name, str) or not _DEAD.fullmatch(list_name):
            problems.append(f"{place}.dead.name: expected the name of an object, found {list_name!r:.200}")
        count = _count(part_of("rows"), f"{place}.dead.rows", problems, least=1)
        if count > rows:
            problems.append(f"{place}.dead.rows: expected at most {rows}, found {count}")
        crc = _count(part_of("crc32c"), f"{place}.dead.crc32c", problems)
        found = Dead(name=str(list_name), rows=count, crc32c=crc)
    return Part(
        name=str(name),
        rows=rows,
        nbytes=_count(get("nbytes"), f"{place}.nbytes", problems),
        digest=str(digest),
        tokens={key: _count(count, f"{place}.tokens.{key}", problems) for key, count in tokens.items()},
        dead=found,
        of=tuple(of),
    )

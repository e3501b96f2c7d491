"""Read the commit record from its file, check its checksums, and notice a later commit.

`snapshot` reads the rows of a commit. `parse_record` defines which records are valid.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path, PurePath
from typing import Any, Final

from embstore._engine.format.parse_record import record_from_json
from embstore._engine.format.parts import PARTS, Listing, listing_from_json
from embstore._engine.format.record import FORMAT, Record, SchemaError, unsupported
from embstore._engine.format.values import checksum, digest
from embstore._engine.format.zarr_layout import MAX_METADATA_BYTES, METADATA_NAME
from embstore._engine.io.folder import Folder, ReadableFolder, Signature
from embstore.errors import CorruptStoreError, NotAStoreError, UnsupportedFormatError

logger = logging.getLogger("embstore")

ATTEMPTS: Final = 200
"""Most attempts to read a store. An attempt fails only when a commit comes during it."""


def parse_document(path: PurePath, data: bytes, also: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Parse a group's ``zarr.json`` and check its record's checksum. Return the whole document."""
    try:
        document = parse_json(data)
        attributes = document["attributes"]
    except (ValueError, RecursionError) as error:
        raise CorruptStoreError(path, f"it is not JSON in UTF-8 with each name once ({len(data):,} bytes)") from error
    except (TypeError, KeyError) as error:
        raise NotAStoreError(path.parent, "its zarr.json has no attributes") from error
    if not isinstance(attributes, dict) or "embstore" not in attributes:
        raise NotAStoreError(path.parent, "it is a Zarr group, but has no embstore record")
    check_record(path, attributes["embstore"], also)
    return dict(document)


def parse_json(data: bytes) -> Any:
    """Parse JSON in UTF-8 without repeated names. `json.loads` of bytes accepts UTF-16, and keeps the last of them.

    Raises
    ------
    ValueError, RecursionError
    """
    return json.loads(data.decode(), object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is repeated")
    return found


METADATA_REWRITTEN: Final = (
    "its consolidated metadata was rewritten by another program; embstore does not need it; the next commit mends it"
)


def metadata_rewritten(document: dict[str, Any]) -> bool:
    """Return whether a group's inline consolidated metadata differs from that written with its record."""
    inline = document.get("consolidated_metadata")
    metadata = inline.get("metadata") if isinstance(inline, dict) else None
    if not isinstance(metadata, dict):
        return True
    return bool(document["attributes"]["embstore"].get("metadata_checksum") != digest(metadata))


def check_record(path: PurePath, attributes: Any, also: frozenset[str] = frozenset()) -> None:
    """Raise if this version can't read a record, or if its checksum does not match."""
    if beyond := unsupported(attributes, also):
        raise UnsupportedFormatError(path.parent, expected=f"format {FORMAT}", found=beyond)
    if not isinstance(attributes, dict) or attributes.get("checksum") != checksum(attributes):
        raise CorruptStoreError(path, "the commit record's checksum does not match")


def parse_record(path: PurePath, attributes: Any) -> Record:
    """Turn a checked record into a `Record`."""
    try:
        return record_from_json(attributes)
    except SchemaError as error:
        raise CorruptStoreError(path, f"the commit record breaks the format: {error}") from error


def listing_in(path: PurePath, data: bytes) -> Listing | None:
    """Return the list of parts in the ``zarr.json`` of a store, or None if it has rows of its own.

    Raises
    ------
    NotAStoreError, UnsupportedFormatError, CorruptStoreError
    """
    record, _ = head_in(path, data)
    return record if isinstance(record, Listing) else None


def read_head(folder: ReadableFolder) -> tuple[Record | Listing, Signature]:
    """Return the commit record of the store in `folder`, and the signature of its file.

    Raises
    ------
    NotAStoreError, UnsupportedFormatError, CorruptStoreError
    """
    path = folder.path / METADATA_NAME
    try:
        signature, (record, rewritten) = folder.read_marked(METADATA_NAME, head_in, most=MAX_METADATA_BYTES)
    except NotAStoreError:
        raise
    except FileNotFoundError as error:
        if isinstance(folder, Folder) and "key_hash" in folder.names():
            raise CorruptStoreError(path, "it is missing") from error
        raise NotAStoreError(folder.path, "it has no zarr.json") from error
    if rewritten:
        logger.warning("%s: %s", path, METADATA_REWRITTEN)
    return record, signature


def read_record(folder: ReadableFolder) -> tuple[Record, Signature]:
    """Return the commit record of the store in `folder`, which has rows of its own. See `read_head`.

    Raises
    ------
    NotAStoreError, UnsupportedFormatError, CorruptStoreError
    """
    record, signature = read_head(folder)
    if isinstance(record, Listing):
        raise UnsupportedFormatError(folder.path, expected="rows of its own", found="a store of parts")
    return record, signature


def head_in(path: PurePath, data: bytes) -> tuple[Record | Listing, bool]:
    """Return the commit record in a ``zarr.json``, and whether another program rewrote its consolidated metadata."""
    document = parse_document(path, data, frozenset((PARTS,)))
    attributes = document["attributes"]["embstore"]
    if PARTS not in attributes["requires"]:
        return parse_record(path, attributes), metadata_rewritten(document)
    try:
        return listing_from_json(attributes), False
    except SchemaError as error:
        raise CorruptStoreError(path, f"the commit record breaks the format: {error}") from error


def is_newer(folder: ReadableFolder, record: Record | Listing | None) -> bool:
    """Return whether the store is at another commit than `record`."""
    if folder.replaced():
        return True
    if record is None:
        return False
    try:
        return read_head(folder)[0].commit_id != record.commit_id
    except (FileNotFoundError, CorruptStoreError):
        return folder.replaced()


def as_corruption(error: Exception) -> Exception:
    """Turn FileNotFoundError into CorruptStoreError. Return other errors as they are."""
    if isinstance(error, FileNotFoundError) and not isinstance(error, NotAStoreError):
        name: Any = error.filename
        return CorruptStoreError(Path(name) if isinstance(name, str) else name, "it is missing")
    return error

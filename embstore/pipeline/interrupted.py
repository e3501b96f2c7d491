"""Ctrl-C: the number of rows that an interrupted run has stored, as a note on its KeyboardInterrupt."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from embstore._engine.chunks.record_file import read_head
from embstore._engine.format.record import Record
from embstore._engine.format.zarr_layout import MAX_METADATA_BYTES
from embstore._engine.io.folder import Folder, ReadableFolder
from embstore._engine.io.remote import RemoteFolder
from embstore.errors import EmbstoreError
from embstore.pipeline.add_fields import gathered_for


@contextlib.contextmanager
def noting_rows(path: PurePath, storage_options: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Add a note to a KeyboardInterrupt: the rows of the store at `path`, and those that gather for a new field."""
    try:
        yield
    except KeyboardInterrupt as error:
        gathering = gathered_for(path)
        more = f", and {sum(map(_rows, gathering)):,} with the new fields" if gathering else ""
        stored = "1 row is stored" if (rows := _rows(path, storage_options)) == 1 else f"{rows:,} rows are stored"
        error.add_note(f"{stored}{more}; run it again to go on")
        raise


def _rows(path: PurePath, storage_options: Mapping[str, Any] | None = None) -> int:
    folder: ReadableFolder
    try:
        if isinstance(path, Path):
            folder = Folder.open(path)
        else:
            folder = RemoteFolder.open(str(path), storage_options, max_signed_bytes=MAX_METADATA_BYTES)
        head = read_head(folder)[0]
    except (FileNotFoundError, EmbstoreError):  # it is not made yet, or another process has removed it
        return 0
    record = head if isinstance(head, Record) else head.as_one()
    return record.rows - record.dead

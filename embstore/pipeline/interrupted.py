"""Ctrl-C: the number of rows that an interrupted run has stored, as a note on its KeyboardInterrupt."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from embstore._engine.chunks.record_file import read_record
from embstore._engine.io.folder import Folder
from embstore.errors import EmbstoreError
from embstore.pipeline.add_fields import gathered_for


@contextlib.contextmanager
def noting_rows(path: Path) -> Iterator[None]:
    """Add a note to a KeyboardInterrupt: the rows of the store at `path`, and those that gather for a new field."""
    try:
        yield
    except KeyboardInterrupt as error:
        gathering = gathered_for(path)
        more = f", and {sum(map(_rows, gathering)):,} with the new fields" if gathering else ""
        stored = "1 row is stored" if (rows := _rows(path)) == 1 else f"{rows:,} rows are stored"
        error.add_note(f"{stored}{more}; run it again to go on")
        raise


def _rows(path: Path) -> int:
    try:
        record = read_record(Folder.open(path))[0]
    except (FileNotFoundError, EmbstoreError):  # it is not made yet, or another process has removed it
        return 0
    return record.rows - record.dead

"""Open a column as one of its kinds: mapped, read chunk by chunk, decoded, or strings."""

from __future__ import annotations

import logging
from typing import Literal

from embstore._engine.chunks.chunk_file import check_digest
from embstore._engine.format.record import STRING, ArrayState, Tail
from embstore._engine.io.folder import Folder, ReadableFolder
from embstore._engine.io.mapping import PAGE_NBYTES, Region, available
from embstore._engine.read.column import Check, NumericColumn
from embstore._engine.read.decoded_chunks import DecodedChunks
from embstore._engine.read.decoded_column import DecodedColumn
from embstore._engine.read.file_column import ChunkedColumn, FileColumn, read_by_chunk
from embstore._engine.read.mapped_column import MappedColumn
from embstore._engine.read.string_column import StringColumn
from embstore.errors import CorruptStoreError

logger = logging.getLogger("embstore")

Mapping = Literal["auto", "never"]
Column = FileColumn | DecodedColumn | StringColumn
AnyColumn = NumericColumn | StringColumn
"""Also a column of several parts."""


def open_column(
    folder: ReadableFolder,
    array: ArrayState,
    *,
    mapping: Mapping = "auto",
    check: Check = "tail",
    tail_after_erase: Tail | None = None,
    salvage: bool = False,
) -> Column:
    """Open the column that lies in `folder`.

    Parameters
    ----------
    folder, array, mapping, check
    tail_after_erase : Tail, optional
        The last chunk's rows after an erase that is under way.
    salvage : bool
        Whether damage to the padding of the last chunk is ignored. The column is not mapped.

    Raises
    ------
    FileNotFoundError
        A chunk is missing.
    CorruptStoreError
        A chunk has the wrong size.
    """
    decoded = array.dtype == STRING or array.compression is not None
    if decoded and isinstance(folder, Folder) and check != "tail" and array.digest is not None and not salvage:
        check_digest(folder, array)
    if array.dtype == STRING:
        return StringColumn(DecodedChunks(folder, array, tail_after_erase, salvage=salvage))
    if decoded or not isinstance(folder, Folder):
        column = DecodedColumn(DecodedChunks(folder, array, tail_after_erase, salvage=salvage), check)
        if check == "all":
            column.read_all()
        return column
    if salvage:
        return ChunkedColumn(folder, array, check, salvage=True)
    return _numeric(folder, array, mapping, check)


def grow_column(column: AnyColumn, array: ArrayState, *, mapping: Mapping, erased: bool) -> Column:
    """Return the column of a later commit of the same store.

    Parameters
    ----------
    column
        Column of the earlier commit.
    array : ArrayState
        Array of the later commit.
    mapping
    erased : bool
        Whether rows were erased between the two.
    """
    if isinstance(column, StringColumn | DecodedColumn):
        return column.grown(array, erased=erased)
    if isinstance(column, MappedColumn):
        grown = column.grown(array, erased=erased)
        return _numeric(column.folder, array, "auto", column.check) if grown is None else grown
    assert isinstance(column, FileColumn), column
    # A column that could not be mapped is not tried again. An empty one was not tried.
    return _numeric(column.folder, array, mapping if column.array.length == 0 else "never", column.check)


def _numeric(folder: Folder, array: ArrayState, mapping: Mapping, check: Check) -> FileColumn:
    """Open a numeric column, mapped where that is wanted and possible."""
    nbytes = array.chunks * array.chunk_nbytes
    if mapping == "never" or array.length == 0:
        return ChunkedColumn(folder, array, check)
    if array.chunk_nbytes % PAGE_NBYTES:
        logger.info("%s: its chunks don't fill pages; reading it chunk by chunk", folder.path)
        return ChunkedColumn(folder, array, check)
    reason = available(nbytes, array.chunks)
    if not reason:
        try:
            return MappedColumn(folder, array, check, Region(nbytes))
        except (FileNotFoundError, CorruptStoreError):
            raise
        except OSError as error:  # the address space or the maps ran out
            reason = str(error)
    return read_by_chunk(folder, array, check, reason)

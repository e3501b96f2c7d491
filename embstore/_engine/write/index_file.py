"""Write the stored index: a sorted run over all rows, once many rows are indexed in memory only."""

from __future__ import annotations

import logging
from functools import partial
from typing import Final

import numpy as np

from embstore._engine.chunks.chunk_file import write_chunk
from embstore._engine.format.values import dump_json
from embstore._engine.format.zarr_layout import METADATA_NAME, array_metadata
from embstore._engine.io.durable import replace_file
from embstore._engine.io.folder import Folder
from embstore._engine.read.key_index import FOLDER, RUN_NAME, SortedRun, run_array, run_tag
from embstore._engine.read.snapshot import Snapshot
from embstore.errors import CorruptStoreError

logger = logging.getLogger("embstore")

_LEAST_RUN: Final = 65_536
_GROUP: Final = b'{"zarr_format":3,"node_type":"group","attributes":{}}'


def wants_run(*, rows: int, in_memory: int) -> bool:
    """Return whether to write a run: more than 65,536 rows, and an eighth of the others, are in memory only."""
    return in_memory > max(_LEAST_RUN, (rows - in_memory) // 8)


def write_run(snapshot: Snapshot) -> None:
    """Write a run over all rows of the snapshot, and remove the other runs. The caller holds the lock.

    A kill at any step is safe: a run without its chunk is not opened, and an older run is right for the rows that it
    covers.
    """
    rows = snapshot.record.rows
    root = snapshot.local_folder
    if FOLDER not in root.names():
        replace_file(root.make_child(FOLDER), METADATA_NAME, [_GROUP])
    folder = root.child(FOLDER)
    name = f"keys.{run_tag(snapshot)}.{rows}"
    present = folder.names()
    if rows and name not in present:
        hashes = np.ascontiguousarray(snapshot.span("key_hash")[:, 0])
        run = SortedRun.over(hashes, 0)
        array = run_array(rows)
        child = folder.make_child(name)
        replace_file(child, METADATA_NAME, [dump_json(array_metadata(array))])
        write_chunk(
            partial(replace_file, child), array, 0, [run.hashes.view(np.uint8).data, run.rows.view(np.uint8).data], 2
        )
        child.sync()
    for other in present:
        if other != name and RUN_NAME.fullmatch(other):
            folder.remove(other)
    folder.sync()
    root.sync()


def recover_index(folder: Folder) -> None:
    """Remove the temporary files of a killed writer in ``index/``, or all of it where a link replaced a folder."""
    try:
        index = folder.child(FOLDER)
        index.remove_partials()
        for name in index.names():
            if RUN_NAME.fullmatch(name):
                index.child(name).remove_partials()
    except FileNotFoundError:
        return
    except CorruptStoreError:
        folder.remove(FOLDER)


def drop_runs(folder: Folder) -> None:
    """Remove all stored runs: they hold hashes of the keys that an erase withdraws."""
    if FOLDER in folder.names():
        folder.remove(FOLDER)
        folder.sync()

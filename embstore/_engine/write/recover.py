"""Recovery: remove the files of a killed writer, which no reader ever saw."""

from __future__ import annotations

from embstore._engine.format.record import ArrayState, Record
from embstore._engine.format.zarr_layout import MAX_METADATA_BYTES, METADATA_NAME, chunk_number, group_document
from embstore._engine.io.durable import remove_tree, replace_file, sibling
from embstore._engine.io.folder import Folder, is_partial
from embstore._engine.read.key_index import FOLDER as INDEX_FOLDER
from embstore._engine.write.commit import own_metadata, remove_dropped, unfinished_array
from embstore._engine.write.erase import finish_erase
from embstore._engine.write.index_file import recover_index
from embstore.errors import CorruptStoreError


def recover(folder: Folder, record: Record) -> Record:
    """Remove the files that a killed writer may have left, and bring array metadata up to the record.

    Returns
    -------
    Record
        Differs from `record` only if an erase had to be finished.
    """
    remove_tree(sibling(folder.path), first=METADATA_NAME)
    folder.remove_partials()
    remove_dropped(folder, record)
    for name in set(folder.names()) - record.arrays.keys() - {METADATA_NAME, INDEX_FOLDER}:
        if unfinished_array(folder, name):  # other folders belong to others
            folder.remove(name)
    document = group_document(record)
    for name, array in record.arrays.items():
        _mend(folder.child(name), array, own_metadata(name, document))
    recover_index(folder)
    return finish_erase(folder, record) if record.erasing is not None else record


def _mend(folder: Folder, array: ArrayState, metadata: bytes) -> None:
    for name in folder.names():
        number = chunk_number(name, array)
        if is_partial(name) or (number is not None and number >= array.chunks):
            folder.remove(name)
    try:
        lags = folder.read(METADATA_NAME, most=MAX_METADATA_BYTES) != metadata
    except (FileNotFoundError, CorruptStoreError):
        lags = True
    if lags:
        replace_file(folder, METADATA_NAME, [metadata])
        folder.sync()

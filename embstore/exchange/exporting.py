"""Export: rows of a store as a file of another kind, put in place whole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from embstore._engine.io.durable import replacing
from embstore._engine.io.remote import local_path
from embstore.exchange.file_contents import format_of, module_of
from embstore.exchange.outgoing import rows_to_write
from embstore.store.embedding_store import EmbeddingStore, View


def export_file(
    rows: EmbeddingStore | View,
    file: str | os.PathLike[str],
    *,
    format: str | None = None,
    fields: Sequence[str] | str | None = None,
) -> Path:
    """Write rows of a store to a file of another kind, which `import_file` can read again.

    Keys, classes, columns, fields and the config go with the rows. The file is written beside its place, synced and
    renamed: a file there is replaced whole or not at all. Deleted rows, provenance and the store's checksums stay
    behind: only a copy of the store's folder has them.

    Parameters
    ----------
    rows : EmbeddingStore or View
        All live rows, or those of the view in its order.
    file : path_like
    format : {"pt", "npz", "hdf5", "safetensors", "parquet"}, optional
        Otherwise as the suffix says.
    fields : str or sequence of str, optional
        All, unless given.

    Returns
    -------
    Path
        Of the file.

    Raises
    ------
    UnknownFormatError, MissingLibraryError, UnknownFieldError, DuplicateKeysError, StoreChangedError
    CorruptStoreError, StorageFullError, ReadOnlyError

    Notes
    -----
    Config, fields and columns are JSON: the attribute ``embstore`` of an HDF5 file, the metadata entry ``embstore`` of
    a safetensors or Parquet file, the array ``__embstore__`` of an .npz. A .pt has the config under ``"metadata"``.

    NumPy, HDF5 and Parquet have no bfloat16: it is written as its bits, uint16. Rows of a ragged field are lists in
    Parquet, elsewhere an array of tokens and one of offsets, ``<field>_offsets``. Texts are such pairs of arrays (UTF-8
    bytes) in safetensors, in .npz where padding would cut or waste much, in HDF5 if they have NULs.

    Examples
    --------
    >>> import numpy as np, tempfile, embstore
    >>> folder = tempfile.mkdtemp()
    >>> with embstore.open(folder + "/a.zarr", "w-", config={"encoder": "demo"}) as store:
    ...     added = store.append(["a:dog", "b:cat"], np.ones((2, 3), np.float32))
    ...     path = export_file(store, folder + "/a.npz")
    >>> sorted(np.load(path)), np.load(path)["embedding"].shape
    (['__embstore__', 'class_name', 'embedding', 'file_id'], (2, 3))
    """
    path = local_path(file).absolute()
    kind = format_of(path, format)
    chosen = rows_to_write(rows, fields)
    with replacing(path) as partial:
        module_of(kind).write(partial, chosen)
    return path

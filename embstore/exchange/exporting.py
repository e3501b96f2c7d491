"""Export: rows of a store as a file of another kind, put in place whole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from embstore._engine.io.durable import replacing
from embstore._engine.io.remote import local_path
from embstore.exchange.base import format_of, module_of
from embstore.exchange.outgoing import rows_to_write
from embstore.store.embedding_store import EmbeddingStore
from embstore.store.view import View


def export_file(
    rows: EmbeddingStore | View,
    file: str | os.PathLike[str],
    *,
    format: str | None = None,
    fields: Sequence[str] | str | None = None,
) -> Path:
    """Write rows of a store to a file of another kind, from which `import_file` gets all of them back.

    Keys, classes, columns, config and fields go with it, values bit for bit. The file is written beside its place,
    synced, and renamed: what was there before is replaced, by a whole file or not at all.

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
    NumPy, HDF5 and Parquet have no bfloat16: it is written as its bits, uint16.

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

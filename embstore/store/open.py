"""Open or make a store: `embstore.open`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal, get_args

from embstore._engine.format.config import Config
from embstore._engine.format.record import FieldSpec
from embstore._engine.format.zarr_layout import FIELD_CHUNK_BYTES
from embstore._engine.io.filesystem import make_parents, refuse_network
from embstore._engine.io.locks import lock
from embstore._engine.io.remote import Url, is_url, local_path
from embstore._engine.read.column import Check
from embstore._engine.read.open_column import Mapping as MappingPolicy
from embstore._engine.read.open_snapshot import open_snapshot
from embstore._engine.read.snapshot import Snapshot
from embstore._engine.write.commit import create
from embstore._engine.write.record_edits import new_record
from embstore._engine.write.session import Session
from embstore.errors import ConfigMismatchError, ReadOnlyError, StoreExistsError
from embstore.store.embedding_store import EmbeddingStore

Mode = Literal["r", "r+", "a", "w-", "x"]


def open(
    path: str | os.PathLike[str],
    mode: Mode = "r",
    *,
    config: Mapping[str, Any] | None = None,
    fields: Mapping[str, FieldSpec] | None = None,
    columns: Mapping[str, str] | None = None,
    check: Check = "tail",
    mapping: MappingPolicy = "auto",
    lock_timeout: float = 60.0,
    network: Literal["refuse", "allow"] = "refuse",
    chunk_bytes: int = FIELD_CHUNK_BYTES,
    expected_rows: int = 0,
    compression: Literal["zstd", "blosc"] | None = None,
    provenance: Mapping[str, str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> EmbeddingStore:
    """Open a store, or make a new one.

    Parameters
    ----------
    path : path_like
        ``~`` is the home folder. Or a URL that fsspec opens (``https://…``, ``s3://…``, ``memory://…``), which is read
        chunk by chunk and never written.
    mode : {"r", "r+", "a", "w-", "x"}
        "r" reads, takes no lock and writes nothing. "r+" reads and writes an existing store. "a" also makes the store
        if it does not exist. "w-" makes a new store, and fails if the path exists. "x" is the same as "w-".
    config : mapping, optional
        Everything that the values depend on. Needed to make a store. Compared with the config of an existing store.
    fields : mapping of str to FieldSpec, optional
        Fields of a new store. By default its first rows decide.
    columns : mapping of str to str, optional
        The dtype of each column of a new store: a NumPy name, or ``"string"``.
    check : {"tail", "touched", "all"}
        The checksums to check: of the rows committed last, of each chunk when it is first read, or of all chunks of a
        column when the column is opened.
    mapping : {"auto", "never"}
        Whether columns may be mapped into memory. "never" reads them.
    lock_timeout : float
        Seconds to wait for the lock of another writer.
    network : {"refuse", "allow"}
        Whether the store may be written on a network or FUSE file system.
    chunk_bytes, expected_rows : int
        For a new store: bytes of a chunk of a field, and the number of rows to expect.
    compression : {"zstd", "blosc"}, optional
        Compression of the fields of a new store, for cold or distant storage. Compressed chunks can't be mapped:
        reading a random row decodes its whole chunk.
    provenance : mapping of str to str, optional
        For a new store: facts (versions, host) that the values don't depend on.
    storage_options : mapping, optional
        Options of the file system of a URL: credentials, endpoint. A pickled store contains them.

    Raises
    ------
    NotAStoreError, StoreExistsError, ConfigMismatchError, ConfigError, RemoteError
    CorruptStoreError, UnsupportedFormatError, NetworkFileSystemError, ReadOnlyError

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> where = tempfile.mkdtemp() + "/demo.zarr"
    >>> with open(where, "w-", config={"encoder": "demo"}) as store:
    ...     store.append(["a:dog", "b:cat"], np.ones((2, 3), np.float32))
    AppendResult(appended=2, skipped=0, replaced=0)
    >>> open(where)["a:dog"]
    array([1., 1., 1.], dtype=float32)
    """
    if mode not in ("r", "r+", "a", "w-", "x"):
        raise ValueError(f'expected mode "r", "r+", "a", "w-" or "x", found {mode!r}')
    for name, value, known in (("check", check, get_args(Check)), ("mapping", mapping, get_args(MappingPolicy))):
        if value not in known:
            raise ValueError(f"expected {name} to be one of {known}, found {value!r}")
    wanted = None if config is None else config if isinstance(config, Config) else Config(config)
    if is_url(path):
        if mode != "r":
            raise ReadOnlyError(Url.shown(path), "a store at a URL is read-only")
        return _opened(open_snapshot(path, check=check, storage_options=storage_options), wanted)
    if storage_options is not None:
        raise ValueError(f"expected a URL with storage_options, found the path {os.fspath(path)!r}")
    place = local_path(path).resolve()
    writable = mode != "r"
    if writable and network != "allow":
        refuse_network(place if place.exists() else place.parent)
    if mode in ("w-", "x") or (mode == "a" and not place.exists()):
        if wanted is None:
            raise TypeError("a new store needs config=, everything that its values depend on")
        record = new_record(
            wanted,
            fields=fields,
            columns=columns,
            chunk_bytes=chunk_bytes,
            expected_rows=expected_rows,
            compression=compression,
            provenance=provenance,
        )
        make_parents(place)
        with lock(place, timeout=lock_timeout):  # two processes may try at once
            if not os.path.lexists(place):
                create(place, record)
            elif mode != "a":
                raise StoreExistsError(place)
    snapshot = open_snapshot(place, mapping=mapping, check=check)
    return _opened(snapshot, wanted, writable=writable, lock_timeout=lock_timeout)


def _opened(
    snapshot: Snapshot, wanted: Config | None, *, writable: bool = False, lock_timeout: float = 0
) -> EmbeddingStore:
    if wanted is not None and (differences := wanted.diff(Config(snapshot.record.config))):
        raise ConfigMismatchError(snapshot.folder.path, differences)
    return EmbeddingStore(Session(snapshot, writable=writable, lock_timeout=lock_timeout))

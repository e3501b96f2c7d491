"""Open or make a store: `embstore.open`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal, get_args

from embstore._engine.format.arguments import check_choice
from embstore._engine.format.config import ABSENT, Config, Difference
from embstore._engine.format.record import FieldSpec, Record
from embstore._engine.io.bucket import Bucket
from embstore._engine.io.filesystem import check_filesystem, make_parents
from embstore._engine.io.locks import lock
from embstore._engine.io.object_store import is_bucket
from embstore._engine.io.urls import Url, is_url, local_path
from embstore._engine.read.column import Check
from embstore._engine.read.open_column import Mapping as MappingPolicy
from embstore._engine.read.open_snapshot import open_snapshot
from embstore._engine.read.parts_snapshot import PartsSnapshot
from embstore._engine.write.commit import create
from embstore._engine.write.parts_session import PartsSession, open_session
from embstore._engine.write.parts_session import create as create_in_bucket
from embstore._engine.write.record_edits import new_record
from embstore._engine.write.session import Session
from embstore.errors import ConfigMismatchError, NotAStoreError, OptionsMismatchError, ReadOnlyError, StoreExistsError
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
    chunk_bytes: int | None = None,
    expected_rows: int = 0,
    compression: Literal["zstd", "blosc"] | None = None,
    primary: str | None = None,
    provenance: Mapping[str, str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> EmbeddingStore:
    """Open a store, or make a new one.

    Parameters
    ----------
    path : path_like
        ``~`` is the home folder. Or a URL (``https://…``, ``s3://…``, or any that fsspec opens). Stores in buckets
        of S3, Google Cloud Storage and Azure are written, too. Others at a URL are read-only.
    mode : {"r", "r+", "a", "w-", "x"}
        "r" reads, takes no lock and writes nothing. "r+" reads and writes an existing store. "a" also makes the store
        if it does not exist. "w-" makes a new store, and fails if the path exists. "x" is the same as "w-".
    config : mapping, optional
        Everything that the values depend on. Needed to make a store. Compared with the config of an existing store.
    fields : mapping of str to FieldSpec, optional
        Fields of a new store. By default its first rows decide. An existing store must have them.
    columns : mapping of str to str, optional
        The dtype of each column of a new store: a NumPy name, or ``"string"``. An existing store must have them.
    check : {"tail", "touched", "all"}
        The checksums to check: of the rows committed last, of each chunk when it is first read, or of all chunks of a
        column when the column is opened. The last two also check that no chunk is in the place of another, except at
        a URL.
    mapping : {"auto", "never"}
        Whether columns may be mapped into memory. "never" reads them.
    lock_timeout : float
        Seconds to wait for the lock of another writer. A bucket has no locks.
    network : {"refuse", "allow"}
        Whether the store may be written on a network or FUSE file system.
    chunk_bytes : int, optional
        Bytes of a chunk of a field of a new store. By default 8 MiB. An existing store must have them.
    expected_rows : int
        For a new store: the number of rows to expect. An existing store keeps its own.
    primary : str, optional
        The field that is read where none is named. By default the first one. Adding a field does not change it.
    compression : {"zstd", "blosc"}, optional
        Compression of the fields of a new store, for cold or distant storage. Compressed chunks can't be mapped:
        reading a random row decodes its whole chunk. An existing store must have it.
    provenance : mapping of str to str, optional
        For a new store: facts (versions, host) that the values don't depend on. An existing store keeps its own.
    storage_options : mapping, optional
        Options of the file system of a URL, by the names of fsspec or of obstore: credentials, endpoint. A pickled
        store holds no credentials.

    Raises
    ------
    NotAStoreError, StoreExistsError, ConfigMismatchError, OptionsMismatchError, ConfigError, RemoteError
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
    check_choice("mode", mode, get_args(Mode))
    check_choice("check", check, get_args(Check))
    check_choice("mapping", mapping, get_args(MappingPolicy))
    check_choice("network", network, ("refuse", "allow"))
    wanted = None if config is None else config if isinstance(config, Config) else Config(config)
    made: dict[str, Any] = {
        "fields": fields,
        "columns": columns,
        "chunk_bytes": chunk_bytes,
        "compression": compression,
        "primary": primary,
    }
    given = {name: value for name, value in made.items() if value is not None}
    how: dict[str, Any] = {"expected_rows": expected_rows, "provenance": provenance}
    if is_url(path):
        if mapping != "auto" or lock_timeout != 60.0:
            raise ValueError(
                "expected a path with mapping= and lock_timeout=: a store at a URL is neither mapped nor locked"
            )
        if mode != "r":
            return _in_bucket(os.fspath(path), mode, wanted, given, how, check, storage_options)
        snapshot = open_snapshot(path, check=check, storage_options=storage_options)
        return _opened(Session(snapshot, writable=False, lock_timeout=0), wanted, given)
    if storage_options is not None:
        raise ValueError(f"expected a URL with storage_options, found the path {os.fspath(path)!r}")
    place = local_path(path).resolve()
    writable = mode != "r"
    if writable and network != "allow":
        check_filesystem(place)
    if mode in ("w-", "x") or (mode == "a" and not place.exists()):
        if wanted is None:
            raise TypeError("a new store needs config=, everything that its values depend on")
        record = new_record(wanted, **how, **given)
        make_parents(place)
        with lock(place, timeout=lock_timeout):  # two processes may try at once
            if not os.path.lexists(place):
                create(place, record)
            elif mode != "a":
                raise StoreExistsError(place)
    snapshot = open_snapshot(place, mapping=mapping, check=check)
    if writable and isinstance(snapshot, PartsSnapshot):
        raise ReadOnlyError(place, "it is a mirror, which only embstore.pull changes; write to the store in the bucket")
    return _opened(Session(snapshot, writable=writable, lock_timeout=lock_timeout), wanted, given)


def _in_bucket(
    url: str,
    mode: Mode,
    wanted: Config | None,
    given: Mapping[str, Any],
    how: Mapping[str, Any],
    check: Check,
    storage_options: Mapping[str, Any] | None,
) -> EmbeddingStore:
    """Open a store in a bucket for writing, or make one."""
    if not is_bucket(url):
        raise ReadOnlyError(Url.shown(url), "it is read-only there; stores are written at s3://, gs:// and az:// only")
    bucket = Bucket(url, storage_options)

    def opened() -> PartsSession | None:
        session = open_session(bucket, url, storage_options, check=check)
        if session is not None and mode in ("w-", "x"):
            raise StoreExistsError(bucket.path)
        return session

    session = opened()
    if session is None:
        if mode == "r+":
            raise NotAStoreError(bucket.path, "there is nothing")
        if wanted is None:
            raise TypeError("a new store needs config=, everything that its values depend on")
        create_in_bucket(bucket, new_record(wanted, **how, **given), exist_ok=mode == "a")
        session = open_session(bucket, url, storage_options, check=check)
        assert session is not None
    return _opened(session, wanted, given)


def _opened(session: Session, wanted: Config | None, given: Mapping[str, Any]) -> EmbeddingStore:
    snapshot = session.snapshot
    record = snapshot.record
    if wanted is not None and (differences := wanted.diff(Config(record.config))):
        raise ConfigMismatchError(snapshot.folder.path, differences)
    made = {name: value for name, value in given.items() if name != "primary"}  # it may be a stored field
    if given and (differences := _differing(new_record(Config(record.config), **made), given, record)):
        raise OptionsMismatchError(snapshot.folder.path, differences)
    return EmbeddingStore(session)


def _differing(wanted: Record, given: Mapping[str, Any], found: Record) -> tuple[Difference, ...]:
    """Return the differences of the given options from those of a store, which may have more fields and columns."""
    pairs: dict[str, tuple[Any, Any]] = {}
    for name, spec in wanted.fields.items():
        pairs[f"field {name}"] = (spec, found.fields.get(name, ABSENT))
    for name, column in wanted.columns.items():
        pairs[f"column {name}"] = (column.dtype, found.columns[name].dtype if name in found.columns else ABSENT)
    for name in given.keys() & found.options.keys():
        pairs[name] = (given[name], found.options[name])
    if "primary" in given:
        pairs["primary"] = (given["primary"], found.primary)
    if "compression" in given:
        pairs["compression"] = (given["compression"], found.compression)
    return tuple(Difference(name, expected, was) for name, (expected, was) in pairs.items() if expected != was)

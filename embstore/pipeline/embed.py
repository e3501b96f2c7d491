"""`embed`: encode the missing and stale samples of a source into a cache, for all wanted fields."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np

from embstore._engine.format.arguments import check_choice, whole_number
from embstore._engine.format.config import Config
from embstore._engine.format.keys import hash_file_ids
from embstore._engine.progress import Progress, check_progress, reporting
from embstore._engine.version import __version__
from embstore._engine.write.check_input import read_keys
from embstore._engine.write.parts_session import PartsSession
from embstore._engine.write.session import Session
from embstore.cache.cache import Cache
from embstore.cache.usage import count
from embstore.encoders.base import BaseEncoder, Encoder, as_encoder
from embstore.errors import FieldMismatchError, MissingKeysError, StoreExistsError, UnknownFieldError
from embstore.pipeline.add_fields import backfill, check_backfill, remove_backfill_leftovers
from embstore.pipeline.columns import SampleColumns
from embstore.pipeline.decode_ahead import Failure
from embstore.pipeline.fill import Job
from embstore.pipeline.find_missing import (
    StoreStatus,
    compare_with_store,
    new_fields_of,
    note_anew,
    note_origin,
    refuse_another_dataset,
    whole_store,
)
from embstore.pipeline.freshness import Compare, compare_samples
from embstore.pipeline.interrupted import noting_rows
from embstore.pipeline.modality import refuse_other_modality
from embstore.pipeline.result import EmbedResult
from embstore.pipeline.run import Run, Samples
from embstore.sources.base import AnySample, Source, origin_of, samples_by_key
from embstore.store.embedding_store import EmbeddingStore
from embstore.store.open import open as open_store

logger = logging.getLogger("embstore")

Vanished = Literal["report", "delete", "ignore"]


def embed(
    source: Source,
    encoder: Encoder,
    cache: Cache | str | os.PathLike[str],
    *,
    batch_size: int = 32,
    workers: int | None = None,
    interval: float | None = None,
    shard: tuple[int, int] | None = None,
    vanished: Vanished = "report",
    force: bool = False,
    compare: Compare = "stamp",
    canaries: int = 1,
    progress: Progress = None,
    columns: Callable[[AnySample], Mapping[str, Any]] | None = None,
) -> EmbedResult:
    """Encode the samples of a source that a cache lacks or has with other content.

    A cache in a bucket (``s3://…``) is filled by any number of machines at once. They store each row once. Without
    `shard`, each of them may encode all samples.

    Rows are committed at least every `interval` seconds. A killed run loses at most this much work and the current
    batch, and the next run resumes. Several processes may fill one local cache at once: no sample is encoded twice. If
    nothing is missing, nothing is loaded. A sample that can't be read, decoded or encoded makes no row, and the
    result lists it. A field that the store lacks is encoded for all stored rows and committed whole.

    The stored order is the order of encoding: new rows come last, and of a batch the long ones may come first. The rows
    of the source, in its order, are `EmbedResult.view`.

    Parameters
    ----------
    source : Source
    encoder : Encoder
    cache : Cache or path_like
    batch_size : int
        Samples that are encoded at a time. It is halved if a batch does not fit the memory, and is not part of the
        config.
    workers : int, optional
        Threads that read and decode ahead of the encoder. By default the number of processors, at most 8.
    interval : float, optional
        Seconds between commits. By default 2, and 20 in a bucket, where each commit makes a part.
    shard : (int, int), optional
        ``(i, n)``: encode only part i of n into a separate store (`part_path`), for array jobs on several machines.
        `embstore.merge` joins the parts. Rows of the whole store count as hits. In a bucket all shards write into the
        one store, and there is nothing to merge.
    vanished : {"report", "delete", "ignore"}
        Treatment of rows of the same origin (folder, file or split) whose sample is no longer in the source. "delete"
        deletes them at the end of the run. A source without a root, such as a DataFrame, may not delete rows if it has
        none of the stored keys, or more than half of a hundred rows or more. "ignore" does not look for them. It is
        the only treatment for a source of some samples (`Source.whole` is False): "delete" raises.
    force : bool
        Delete that many rows all the same, and encode stale rows of another origin again.
    compare : {"stamp", "content"}
        "stamp" reads only the files whose size, mtime, ctime or inode differ from the stored ones. ctime and inode are
        compared only if the row was made on this machine, from a file in the same folder. "content" reads all files.
    canaries : int
        Number of stored samples that an encoder in memory (`FunctionEncoder`, `ModuleEncoder`) encodes again in each
        run, and whether it encodes the first batch of a new store twice, and two of its samples alone. So changed
        code, random values, and values that depend on the rest of the batch are found, which the config does not show.
        The tolerance is that of `check`. 0 checks nothing.
    progress : callable, bool or None
        A function of (done, total), True for a bar, or False for none. None shows a bar at a terminal and in Jupyter,
        if tqdm is installed. Loading the model does not count for the time left.
    columns : callable, optional
        Returns a sample's values of further columns, besides those that the source gives (`Table(columns=…)`). Values
        of stored rows are compared, and changed in one commit. A row that is encoded again keeps the values of
        columns that are not given. A new row without a value has the fill of the column.

    Returns
    -------
    EmbedResult

    Raises
    ------
    DuplicateKeysError
        Two samples have the same key.
    DatasetMismatchError
        The source seems to be another data set under the same name: it has other content for rows of another origin,
        or `vanished` would delete too many rows. Nothing was changed. See `force`.
    EncoderChangedError, RandomEncoderError, BatchDependentError
        An encoder in memory gives other values than the stored ones, other values each time, or other values in a
        batch than alone.
    FieldMismatchError
        A field of the encoder is stored with another shape, dtype, layer or pooling.
    UnknownFieldError
        The store has a field that the encoder lacks, so new rows would lack it.
    ReadOnlyError
        Stored rows in a bucket would get another field, or other values of a column.
    DtypeError, NameRefusedError, UnknownColumnError
        Values or a name don't fit a column, or a row is given no value of integers or bools. Nothing was encoded.
    MissingKeysError
        A field is to be added, but samples of stored rows are gone. Or a new column of integers or bools has no value
        for them.
    KeyboardInterrupt
        After Ctrl-C. A note says how many rows are stored.
    """
    check_progress(progress)
    batch_size, canaries = whole_number("batch_size", batch_size, 1), whole_number("canaries", canaries, 0)
    workers = None if workers is None else whole_number("workers", workers, 1)
    check_choice("vanished", vanished, ("report", "delete", "ignore"))
    check_choice("compare", compare, ("stamp", "content"))
    if getattr(source, "whole", None) is False:
        if vanished == "delete":
            raise ValueError(
                f"{source.name!r} lists some samples (whole is False): expected vanished 'ignore', for 'delete' "
                "would delete the rows of all others"
            )
        vanished = "ignore"
    started, began = time.monotonic(), time.time_ns()
    cache = cache if isinstance(cache, Cache) else Cache(cache)
    own = as_encoder(encoder)
    samples = samples_by_key(source)
    config = Config(own.config, dataset=source.name)
    path = cache.path_of(config)
    if shard is not None:
        samples = _share(samples, shard)
        path = part_path(path, shard) if isinstance(path, Path) else path
    run = Run(
        cache=cache,
        path=path,
        config=config,
        encoder=own,
        samples=samples,
        origin=origin_of(source),
        whole=getattr(source, "whole", False) is True and shard is None,
        columns=SampleColumns(samples, columns),
        batch_size=batch_size,
        workers=workers or min(8, os.cpu_count() or 1),
        interval=_interval(path) if interval is None else interval,
        compare=compare,
        canaries=canaries,
        began=began,
    )
    with noting_rows(run.path, cache.storage_options):
        result = _carried_out(run, vanished, progress, started, shard, force=force)
    if result.encoded or result.fields_added:
        cache.prune_after(cache.path_of(config))
    return result


def _carried_out(
    run: Run,
    vanished: Vanished,
    progress: Progress,
    started: float,
    shard: tuple[int, int] | None,
    *,
    force: bool,
) -> EmbedResult:
    """Compare, encode, and return the result."""
    own, name = run.encoder, run.config["dataset"]
    whole = None if run.path == run.cache.path_of(run.config) else whole_store(run)
    refuse_other_modality(run.samples, own.modality)
    status = compare_with_store(run, whole=whole, gone=shard is None and vanished != "ignore")
    logger.info("%s: %s", name, status.reason)
    if not force:
        refuse_another_dataset(run, status, delete=vanished == "delete")
    note_anew(run, status.found.touched, status.unnoted)
    unproven = bool(run.canaries) and own.in_memory and not status.made and not status.found.stored
    unchecked = bool(run.canaries) and own.in_memory and not status.found.stored
    job = Job(run=run, encoder=own, batch_size=run.batch_size, unproven=unproven, unchecked=unchecked)
    job.failures |= {key: Failure(key, run.samples[key].where, e.reason) for key, e in status.found.unreadable.items()}
    added: tuple[str, ...] = ()
    if status.work or (status.gone and vanished == "delete"):
        with _writable(run) as store:
            job.origin = note_origin(store, run.origin)
            job.gone = status.gone if run.whole else []
            to_delete = status.gone if vanished == "delete" else []
            total = len(status.wanted) + (len(store) - len(to_delete) if status.new_fields else 0)
            hits = len(run.samples) - len(status.wanted)
            with reporting(progress, total, name, hits=hits) as advance:
                job.advance = advance
                added = _encode(store, status, job, to_delete=to_delete)
            _delete_outdated(store, status, job)
    return _finished(status, job, added, started, shard)


def _encode(store: EmbeddingStore, status: StoreStatus, job: Job, *, to_delete: list[str]) -> tuple[str, ...]:
    """Encode the wanted samples and fields, delete rows whose sample is gone, and return the added fields."""
    encoder, samples = job.run.encoder, job.run.samples
    added: tuple[str, ...] = ()
    remove_backfill_leftovers(store)
    if new_fields := new_fields_of(store, encoder):  # another process may have added them since
        job.move(store, {key: samples[key] for key in status.found.missing})
        job.deleted += _delete(store, to_delete, "is gone")  # a new field needs a sample for each row
        check_backfill(store, new_fields, samples)
        if status.found.stale:
            # Replace stale rows first: the new field is made of the present content.
            _give_all(job, store)
            job.fill(store, {key: samples[key] for key in status.found.stale})
        job.encoder = encoder
        added = backfill(store, new_fields, job)
    while status.wanted:
        _give_all(job, store)
        fields = store.fields.keys()
        try:
            job.fill(store, {key: samples[key] for key in status.wanted})
            break
        except UnknownFieldError:
            store.refresh()
            if store.fields.keys() == fields:
                raise
            job.done.clear()  # another process added a field, so rows without it were refused
    job.deleted += _delete(store, to_delete, "is gone")
    return added


def _finished(
    status: StoreStatus, job: Job, added: tuple[str, ...], started: float, shard: tuple[int, int] | None
) -> EmbedResult:
    """Count a run in the usage of the whole store, and return its result."""
    run = job.run
    keys = [key for key in run.samples if key not in job.failures]
    whole = run.cache.path_of(run.config)
    with open_store(run.path, **run.options) as store:
        rows, nbytes = len(store), store.nbytes
        if run.path != whole:  # the part of a shard lacks the rows of the whole store
            keys = [key for key, row in zip(keys, store.find(keys).tolist(), strict=True) if row >= 0]
    if job.failures:
        counted = (run.config["dataset"], len(job.failures), len(run.samples))
        logger.warning("%s: %d of %d samples failed; the result lists them", *counted)
    hits = len(status.found.stored)
    count(
        whole,
        hits=hits,
        misses=len(status.wanted),
        served=hits + job.encoded + job.copied + len(job.relabelled),
        encoded=job.encoded,
        seconds=time.monotonic() - started if job.encoded else 0,
    )
    return EmbedResult(
        path=run.path,
        config=run.config,
        reason=status.reason,
        samples=len(run.samples),
        hits=hits,
        encoded=job.encoded,
        stale=len(status.found.stale),
        failed=tuple(job.failures.values()),
        copied=job.copied,
        relabelled=job.relabelled,
        vanished=tuple(key for key in status.gone if key not in job.relabelled),
        deleted=job.deleted,
        fields_added=added,
        keys=tuple(keys),
        wanted=tuple(run.samples),
        shard=None if run.path == whole else shard,
        rows=rows,
        nbytes=nbytes,
        seconds=time.monotonic() - started,
        storage_options=run.cache.storage_options,
    )


def _delete_outdated(store: EmbeddingStore, status: StoreStatus, job: Job) -> None:
    """Delete the rows of samples that failed, and whose content is not the one that the row was made from."""
    failed = {key: job.run.samples[key] for key in status.found.stale if key in job.failures}
    if failed:
        store.refresh()
        found = compare_samples(store, failed, workers=job.run.workers, compare=job.run.compare)
        _delete(store, found.stale, "was made from other content, and can't be encoded now")


def _delete(store: EmbeddingStore, keys: list[str], why: str) -> int:
    """Delete rows that no other process has deleted, and return their number."""
    deleted = 0
    while there := [key for key in keys if key in store]:
        try:
            deleted += store.delete(there)
            logger.info("%s: deleted %d rows whose sample %s", store.path, len(there), why)
        except MissingKeysError:
            store.refresh()
    return deleted


def _interval(path: PurePath) -> float:
    """Return the seconds between commits into the store at a path or URL."""
    return (Session if isinstance(path, Path) else PartsSession).interval


def part_path(path: Path, shard: tuple[int, int]) -> Path:
    """Return the path of a shard's part of the store at `path`. Caches don't list parts as stores."""
    index, count = shard
    return path.with_name(f"{path.name}.part-{index}-of-{count}")


def _share(samples: Samples, shard: tuple[int, int]) -> dict[str, AnySample]:
    """Return a shard's samples by the hash of the file_id, which depends neither on the label nor on other samples."""
    index, count = shard if isinstance(shard, tuple | list) and len(shard) == 2 else (None, None)
    if not (isinstance(index, int) and isinstance(count, int) and 0 <= index < count):
        raise ValueError(f"expected shard (i, n) of whole numbers with 0 <= i < n, found {shard!r:.200}")
    chosen = hash_file_ids(read_keys(samples).file_ids)[:, 0] % np.uint64(count) == index
    return {key: sample for (key, sample), mine in zip(samples.items(), chosen.tolist(), strict=True) if mine}


def _give_all(job: Job, store: EmbeddingStore) -> None:
    """Set the fields of a job's encoder to those of the store, which a new row needs.

    Raises
    ------
    UnknownFieldError
        The encoder lacks one of them.
    """
    encoder, stored = job.run.encoder, store.fields
    job.encoder = encoder
    if encoder.fields is not None and stored and stored.keys() != encoder.fields.keys():
        try:
            job.encoder = encoder.with_fields(list(stored))
            for name, spec in (job.encoder.fields or {}).items():
                if name in stored and (spec.layer, spec.pooling) != (stored[name].layer, stored[name].pooling):
                    raise FieldMismatchError(name, path=store.path, expected=stored[name].meaning, found=spec.meaning)
        except UnknownFieldError as error:
            hint = f"new rows need all fields that are stored: make the encoder with {', '.join(stored)}"
            raise UnknownFieldError(error.field, error.available, hint=hint) from error
        job.casting = "same_kind"  # the stored dtype was chosen when the field was made


def _writable(run: Run) -> EmbeddingStore:
    """Open or make the store of a run for writing, with the columns on the content that its rows were made from."""
    encoder = run.encoder
    if not run.cache.has_store(run.path):
        made = {"fields": encoder.fields, "provenance": _provenance(encoder), "expected_rows": len(run.samples)}
        with contextlib.suppress(StoreExistsError):  # another process makes it
            open_store(run.path, "x", config=run.config, **{**made, **run.options}).close()
    store = open_store(run.path, "r+", config=run.config, **run.options)
    run.columns.write(store)
    return store


def _provenance(encoder: BaseEncoder) -> dict[str, str]:
    return {
        **encoder.provenance,
        "embstore": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "host": platform.node(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }

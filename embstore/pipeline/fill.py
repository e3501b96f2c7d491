"""Encoding of missing samples: claim, decode ahead, encode in batches that fit the memory, commit at intervals.

One `Job` fills one store with samples. `embed` and `add_fields` choose the samples and the store.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from embstore._engine.format.ragged import Padded, Ragged
from embstore._engine.format.source_columns import DIGEST_COLUMN, ORIGINS_COLUMN
from embstore._engine.progress import Advance
from embstore._engine.write.check_input import Casting, named_rows, read_keys
from embstore._engine.write.copy_plans import Copies, plan_copies
from embstore._engine.write.row_writer import RowWriter
from embstore.cache.claims import Claims, NoClaims, claims_on, hashes_of
from embstore.cache.coverage import stamp_values
from embstore.encoders.base import BaseEncoder
from embstore.errors import NonFiniteError, StoreChangedError
from embstore.pipeline.check import check_repeats, recheck
from embstore.pipeline.decode_ahead import Decoded, Failure, batches, decoded_ahead
from embstore.pipeline.freshness import compare_samples
from embstore.pipeline.run import Run, Samples
from embstore.pipeline.same_content import Copy, SameContent
from embstore.sources.base import AnySample
from embstore.store.embedding_store import EmbeddingStore, session_of

logger = logging.getLogger("embstore")

_POLL: Final = 0.1  # seconds between checks for rows of other processes
_CLAIMED_BATCHES: Final = 4
_COPIED_AT_ONCE: Final = 8192
_KEYS_SHOWN: Final = 5


@dataclass(kw_only=True)
class Job:
    """Options and results of encoding samples.

    Attributes
    ----------
    run : Run
    encoder : BaseEncoder
        Encoder of the run, with the fields that the rows need.
    batch_size : int
        Batch size of the run, halved for good if a batch does not fit the memory.
    advance : callable
        Called with the number of samples done.
    casting : {"no", "same_kind"}
        Whether rows of another dtype than the store's may be converted.
    unproven : bool
        Whether the next batch is to be encoded twice, to find an encoder that is random.
    unchecked : bool
        Whether no stored sample was encoded again yet, to find an encoder whose code changed.
    origin : int
        Bit of the source's origin in the column of origins.
    encoded : int
        Rows made so far.
    gone : list of str
        Stored keys that are gone from a whole source, whose rows may move.
    copied : int
        Rows copied so far from other keys of the same content, which stay.
    relabelled : dict of str to str
        New key of each row that moved so far, by the old one.
    deleted : int
        Rows deleted so far, whose sample is gone.
    failures : dict of str to Failure
        Failed samples by key.
    done : set of str
        Keys of the samples encoded so far. If one changes again, the next run encodes it: a file that never stops
        changing must not keep this run from ending.
    """

    run: Run
    encoder: BaseEncoder
    batch_size: int
    advance: Advance = lambda count, loading=False: None
    casting: Casting = "no"
    unproven: bool = False
    unchecked: bool = False
    origin: int = 0
    encoded: int = 0
    gone: list[str] = field(default_factory=list)
    copied: int = 0
    relabelled: dict[str, str] = field(default_factory=dict)
    deleted: int = 0
    failures: dict[str, Failure] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)

    def fill(self, store: EmbeddingStore, samples: Samples) -> None:
        """Encode the samples that a store lacks or has with other content.

        Several processes may do so at once. Each takes samples that no other has claimed, and waits for the others at
        the end, because a killed process leaves its samples undone.

        Parameters
        ----------
        store : EmbeddingStore
        samples : mapping of str to Sample
            By key.
        """
        todo = self._todo(store, samples)
        if not todo:
            return
        same = SameContent.of(store, todo, self.gone) if self.encoder.pure else None
        with claims_on(store.path) as claims:
            while todo:
                before = len(self.done) + len(self.failures)
                self._round(store, {key: samples[key] for key in todo}, claims, same)
                if len(self.done) + len(self.failures) == before:
                    logger.debug("waiting for other processes, which are at %d samples", len(todo))
                    time.sleep(_POLL)
                store.refresh()
                todo = self._todo(store, {key: samples[key] for key in todo})

    def move(self, store: EmbeddingStore, samples: Samples) -> None:
        """Move and copy rows to samples that a store lacks, and encode none.

        Parameters
        ----------
        store, samples
            See `fill`.
        """
        if self.gone and samples and self.encoder.pure:
            same = SameContent.of(store, samples, self.gone)
            with claims_on(store.path) as claims:
                self._round(store, samples, claims, same, encode=False)
            store.refresh()

    def _todo(self, store: EmbeddingStore, samples: Samples) -> list[str]:
        left = {key: sample for key, sample in samples.items() if key not in self.failures and key not in self.done}
        found = compare_samples(store, left, workers=self.run.workers, compare=self.run.compare)
        for key, error in found.unreadable.items():
            self._failed(Failure(key, samples[key].where, error.reason))
        return [*found.missing, *found.stale]

    def _round(
        self,
        store: EmbeddingStore,
        samples: Samples,
        claims: Claims | NoClaims,
        same: SameContent | None,
        *,
        encode: bool = True,
    ) -> None:
        """Encode the samples that no other process has claimed, or copy the rows of their content."""
        rows = dict(zip(samples, store.find(list(samples)).tolist(), strict=True))
        chosen = self._claimed(store, samples, rows, claims)
        with contextlib.ExitStack() as stack:
            # Another process may have added a missing row since. Its row is equally good, so it is kept ("skip").
            options: dict[str, Any] = {"interval": self.run.interval, "casting": self.casting}
            writers = [stack.enter_context(store.writer(if_exists=how, **options)) for how in ("skip", "replace")]
            known = _none if same is None else same.known if encode else _all
            sizes = {"workers": self.run.workers, "batch_size": self.batch_size}
            ready = decoded_ahead(chosen, self.encoder, known=known, **sizes)
            stack.enter_context(contextlib.closing(ready))
            left = self._without_failures(ready)
            if same is not None:
                left = (done for done in self._without_copies(left, store, rows, same) if encode)
            for batch in batches(left, self.batch_size):
                self._recheck_copied(store, same)
                if any(rows[done.key] < 0 for done in batch):
                    self.run.columns.check_new_rows(store)  # again: only now it is known that these rows don't move
                for part, values in self._encoded(batch):
                    if same is not None and any(rows[done.key] >= 0 for done in part):
                        self._copy(store, rows, same, same.stored)  # before these rows are replaced
                    if self.encoder.fields is not None and isinstance(values, Mapping) and store.fields:
                        values = {name: rows for name, rows in values.items() if name in store.fields}
                    for replaces, writer in enumerate(writers):
                        places = [i for i, done in enumerate(part) if (rows[done.key] >= 0) == replaces]
                        self._write(writer, part, values, places)
                    for writer in writers:
                        writer.flush_if_due()
        if same is not None:
            self._recheck_copied(store, same)
            self._copy(store, rows, same, same.stored)
            self._copy(store, rows, same, same.again)

    def _claimed(
        self, store: EmbeddingStore, samples: Samples, rows: Mapping[str, int], claims: Claims | NoClaims
    ) -> Iterator[tuple[str, AnySample]]:
        """Yield samples on demand, once it is known that no other process has claimed or stored them."""
        left = deque(zip(samples, hashes_of(list(samples)), strict=True))
        mine: list[str] = []
        size = _CLAIMED_BATCHES * self.batch_size
        while left:
            chosen: list[str] = []
            with claims.choosing() as others:
                store.refresh()
                mine = [key for key in self._undone(store, mine, rows) if key not in self.failures]
                while left and len(chosen) < size:
                    candidates = [left.popleft() for _ in range(min(len(left), size))]
                    free = [key for key, key_hash in candidates if key_hash not in others]
                    chosen += self._undone(store, free, rows)
                mine += chosen
                claims.announce(mine)
            for key in chosen:
                yield key, samples[key]

    @staticmethod
    def _undone(store: EmbeddingStore, keys: list[str], rows: Mapping[str, int]) -> list[str]:
        """Return the keys whose row number has not changed. An added or replaced row has another number."""
        found = store.find(keys).tolist()
        return [key for key, row in zip(keys, found, strict=True) if row == rows[key]]

    def _without_failures(self, ready: Iterator[Decoded | Failure]) -> Iterator[Decoded]:
        for done in ready:
            if isinstance(done, Failure):
                self._failed(done)
            else:
                yield done

    def _without_copies(
        self, ready: Iterator[Decoded], store: EmbeddingStore, rows: Mapping[str, int], same: SameContent
    ) -> Iterator[Decoded]:
        """Yield the samples whose content has no row, and copy rows to the others."""
        last = time.monotonic()
        for done in ready:
            if not same.copies(done):
                yield done
            elif len(same.stored) >= _COPIED_AT_ONCE or time.monotonic() - last >= self.run.interval:
                self._copy(store, rows, same, same.stored)
                last = time.monotonic()

    def _copy(self, store: EmbeddingStore, rows: Mapping[str, int], same: SameContent, copies: list[Copy]) -> None:
        """Copy rows in one commit. Samples whose row another process has changed are encoded in the next round."""
        if not copies:
            return
        made, sources = [copy.done for copy in copies], [""] * len(copies)
        done = moved = np.zeros(len(copies), dtype=bool)
        with contextlib.suppress(StoreChangedError):  # rows were erased or renumbered since
            sources = same.sources(copies)
            wanted = Copies(
                keys=read_keys([done.key for done in made]),
                found=np.array([rows[done.key] for done in made], dtype=np.int64),
                sources=sources,
                moves=np.array([copy.moves for copy in copies]),
                digests=[done.digest for done in made],
                origin=self.origin,
                columns=self._columns(made),
            )
            done, moved = session_of(store).apply(lambda snapshot, index: plan_copies(snapshot, index, wanted))
        for sample, source, is_done, is_moved in zip(made, sources, done.tolist(), moved.tolist(), strict=True):
            (self.done if is_done else same.refused).add(sample.key)
            if is_moved:
                self.relabelled[source] = sample.key
        self.copied += int(done.sum() - moved.sum())
        logger.debug("%s: %d rows moved, %d copied", store.path, moved.sum(), done.sum() - moved.sum())
        self.advance(int(done.sum()))
        copies.clear()

    def _recheck_copied(self, store: EmbeddingStore, same: SameContent | None) -> None:
        """Encode samples again whose rows are copied, if the run has no hit to encode again."""
        if self.unchecked and same is not None and same.stored:
            self.unchecked = False
            copies = same.stored[: self.run.canaries]
            samples = {key: copy.done.sample for key, copy in zip(same.sources(copies), copies, strict=True)}
            recheck(store, self.encoder, samples, [key for key in samples if key in store], self.run.canaries)

    def _failed(self, failure: Failure) -> None:
        logger.debug("not encoded: %s", failure)
        self.failures[failure.key] = failure
        self.advance(1)

    def _encoded(self, batch: list[Decoded]) -> Iterator[tuple[list[Decoded], Any]]:
        """Encode a batch, in halves if it does not fit the memory."""
        left = batch
        while left:
            part = left[: self.batch_size]
            try:
                values = named_rows(self.encoder.encode([done.item for done in part]))
                if self.unproven:
                    check_repeats(self.encoder, part, values, self.run.path)
                    self.unproven = False
            except Exception as error:
                if len(part) == 1 or not is_out_of_memory(error):
                    shown = [done.key for done in part[:_KEYS_SHOWN]] + (["…"] if len(part) > _KEYS_SHOWN else [])
                    error.add_note(f"the batch has {len(part)} sample(s): {', '.join(shown)}")
                    raise
                self.batch_size = len(part) // 2
                logger.warning("out of memory with a batch of %d, going on with %d", len(part), self.batch_size)
                continue
            yield part, values
            left = left[len(part) :]

    def _write(self, writer: RowWriter, part: list[Decoded], values: Any, places: list[int]) -> None:
        """Pass the rows at some places to a writer. Rows with NaN or infinity become failures of their samples."""
        chosen = [part[i] for i in places]
        if not chosen:
            return
        try:
            rows = pick_rows(values, places, len(part))
            writer.append([done.key for done in chosen], rows, columns=self._columns(chosen))
        except NonFiniteError as error:
            bad = set(error.keys)
            for done in chosen:
                if done.key in bad:
                    reason = f"the encoder gave NaN or infinity ({error.field})"
                    if "float16" in error.hint:
                        reason = f"infinity ({error.field}): {error.hint}"
                    self._failed(Failure(done.key, done.sample.where, reason))
            self._write(writer, part, values, [i for i in places if part[i].key not in bad])
            return
        first = not self.encoded  # its time includes that of loading the model
        self.encoded += len(chosen)
        self.done |= {done.key for done in chosen}
        self.advance(len(chosen), loading=first)

    def _columns(self, part: Sequence[Decoded]) -> dict[str, Any]:
        columns: dict[str, Any] = {
            DIGEST_COLUMN: [done.digest for done in part],
            **stamp_values(done.stamp for done in part),
            ORIGINS_COLUMN: [self.origin] * len(part),
        }
        return columns | self.run.columns.of(done.key for done in part)


def _none(key: str, digest: str) -> bool:
    return False


def _all(key: str, digest: str) -> bool:
    return True


def pick_rows(values: Any, places: list[int], count: int) -> Any:
    """Return some of an encoder's rows, for each field."""
    if len(places) == count:
        return values
    if isinstance(values, Mapping):
        return {name: pick_rows(rows, places, count) for name, rows in values.items()}
    if isinstance(values, Padded):
        return Padded(values.values[places], values.lengths[places])
    if isinstance(values, list | tuple | Ragged):
        return [values[i] for i in places]
    return values[places]


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error is out of memory. Errors of torch are recognised by name, so it is not imported."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)

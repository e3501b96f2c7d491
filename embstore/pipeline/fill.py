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

from embstore._engine.format.ragged import Padded, Ragged
from embstore._engine.format.source_columns import DIGEST_COLUMN, ORIGINS_COLUMN
from embstore._engine.progress import Advance
from embstore._engine.write.check_input import Casting, named_rows
from embstore._engine.write.row_writer import RowWriter
from embstore.cache.claims import Claims, hashes_of
from embstore.cache.coverage import stamp_values
from embstore.encoders.base import BaseEncoder
from embstore.errors import NonFiniteError
from embstore.pipeline.check import check_repeats
from embstore.pipeline.decode_ahead import Decoded, Failure, batches, decoded_ahead
from embstore.pipeline.freshness import compare_samples
from embstore.pipeline.run import Run, Samples
from embstore.sources.base import AnySample, naming
from embstore.store.embedding_store import EmbeddingStore

logger = logging.getLogger("embstore")

_POLL: Final = 0.1  # seconds between checks for rows of other processes
_CLAIMED_BATCHES: Final = 4
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
    origin : int
        Bit of the source's origin in the column of origins.
    encoded : int
        Rows made so far.
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
    origin: int = 0
    encoded: int = 0
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
        with Claims(store.path) as claims:
            while todo:
                before = self.encoded + len(self.failures)
                self._round(store, {key: samples[key] for key in todo}, claims)
                if self.encoded + len(self.failures) == before:
                    logger.debug("waiting for other processes, which are at %d samples", len(todo))
                    time.sleep(_POLL)
                store.refresh()
                todo = self._todo(store, {key: samples[key] for key in todo})

    def _todo(self, store: EmbeddingStore, samples: Samples) -> list[str]:
        left = {key: sample for key, sample in samples.items() if key not in self.failures and key not in self.done}
        found = compare_samples(store, left, workers=self.run.workers, compare=self.run.compare)
        for key, error in found.unreadable.items():
            self._failed(Failure(key, samples[key].where, error.reason))
        return [*found.missing, *found.stale]

    def _round(self, store: EmbeddingStore, samples: Samples, claims: Claims) -> None:
        """Encode the samples that no other process has claimed."""
        rows = dict(zip(samples, store.find(list(samples)).tolist(), strict=True))
        chosen = self._claimed(store, samples, rows, claims)
        with contextlib.ExitStack() as stack:
            # Another process may have added a missing row since. Its row is equally good, so it is kept ("skip").
            options: dict[str, Any] = {"interval": self.run.interval, "casting": self.casting}
            writers = [stack.enter_context(store.writer(if_exists=how, **options)) for how in ("skip", "replace")]
            ready = decoded_ahead(chosen, self.encoder, workers=self.run.workers, batch_size=self.batch_size)
            stack.enter_context(contextlib.closing(ready))
            for batch in batches(self._without_failures(ready), self.batch_size):
                for part, values in self._encoded(batch):
                    if self.encoder.fields is not None and isinstance(values, Mapping) and store.fields:
                        values = {name: rows for name, rows in values.items() if name in store.fields}
                    for replaces, writer in enumerate(writers):
                        places = [i for i, done in enumerate(part) if (rows[done.key] >= 0) == replaces]
                        self._write(writer, part, values, places)
                    for writer in writers:
                        writer.flush_if_due()

    def _claimed(
        self, store: EmbeddingStore, samples: Samples, rows: Mapping[str, int], claims: Claims
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

    def _columns(self, part: Sequence[Decoded]) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {
            DIGEST_COLUMN: [done.digest for done in part],
            **stamp_values(done.stamp for done in part),
            ORIGINS_COLUMN: [self.origin] * len(part),
        }
        if self.run.columns is not None:
            for done in part:
                with naming(f"columns= of {done.key}"):
                    found = self.run.columns(done.sample)
                for name, value in found.items():
                    columns.setdefault(name, []).append(value)
        return columns


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

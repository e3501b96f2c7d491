"""Canaries: a few samples are encoded again, to find values that an upgrade, other code or chance changed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from embstore._engine.format.arguments import whole_number
from embstore._engine.format.ragged import Padded, Ragged
from embstore._engine.format.record import BFLOAT16
from embstore._engine.format.source_columns import without_kind
from embstore._engine.notebook import ShownAsText
from embstore._engine.pickles import PickledByName
from embstore._engine.read.dtypes import as_rows, widen_bfloat16
from embstore._engine.rng import Rng, generator_of
from embstore._engine.write.check_input import named_rows
from embstore.cache.coverage import stored_digests
from embstore.encoders.base import BaseEncoder, Encoder, as_encoder
from embstore.errors import (
    BatchDependentError,
    ConfigMismatchError,
    EmptySourceError,
    EncoderChangedError,
    RandomEncoderError,
    ShapeError,
    UnknownFieldError,
)
from embstore.pipeline.decode_ahead import Decoded, read_and_decode
from embstore.pipeline.freshness import compare_samples
from embstore.pipeline.run import Samples
from embstore.sources.base import AnySample, Source, naming, sample_error, samples_by_key
from embstore.store.embedding_store import EmbeddingStore

_OTHERS = 16  # factor of further samples that are compared if some are stale
_COMPARED = 8  # rows of the first batch
_TOLERANCE: Mapping[str, float] = {"float32": 1e-4, "float64": 1e-4, "float16": 1e-2, "bfloat16": 3e-2}


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryReport(ShownAsText, PickledByName):
    """Comparison of stored rows with the encoder's present values.

    Attributes
    ----------
    keys : tuple of str
        Samples that were encoded again.
    differences : dict of str to float
        Largest difference of two numbers by field, relative to the largest number of the stored row.
    tolerances : dict of str to float
        Tolerance by field.
    stale : tuple of str
        Samples that were skipped, because their content differs from the encoded one.
    """

    keys: tuple[str, ...]
    differences: dict[str, float]
    tolerances: dict[str, float]
    stale: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether all differences are within the tolerances."""
        return all(found <= self.tolerances[name] for name, found in self.differences.items())

    def __str__(self) -> str:
        verdict = "the cache still holds" if self.ok else "the encoder gives other values than are stored"
        lines = [f"{len(self.keys)} samples encoded again: {verdict}"]
        for name, found in self.differences.items():
            lines.append(f"  {name}: largest difference {found:.2g}, tolerance {self.tolerances[name]:g}")
        if self.stale:
            lines.append(f"  {len(self.stale)} passed over as stale, of other content than was encoded")
        return "\n".join(lines)


def check(
    store: EmbeddingStore,
    encoder: Encoder,
    source: Source,
    *,
    n: int = 8,
    batch_size: int = 32,
    tolerance: float | None = None,
    rng: Rng | None = None,
) -> CanaryReport:
    """Encode a few stored samples again, and compare them with the stored rows.

    Batch size alone changes the last bits, and so do the machine and the versions of torch and transformers. The
    fingerprint does not include these. After an upgrade, `check` shows whether the stored rows are still valid.

    Parameters
    ----------
    store : EmbeddingStore
    encoder : Encoder
        Encoder that was given to `embed`.
    source : Source
        Source that was given to `embed`.
    n : int
        Number of samples.
    batch_size : int
        Samples that are encoded and compared at a time.
    tolerance : float, optional
        Largest accepted difference, relative to the largest number of a row. By default 1e-4 for float32, 1e-2 for
        float16 and 3e-2 for bfloat16, stored or as the config's `compute_dtype`.
    rng : int or numpy.random.Generator, optional
        Generator that chooses the samples. By default they are spread evenly over the source.

    Raises
    ------
    ConfigMismatchError
        The store was made with another encoder or source.
    EmptySourceError
        None of the source's samples is stored with its present content.
    """
    if not isinstance(store, EmbeddingStore):
        raise TypeError(f"expected a store, found {store!r:.200}; open one with embstore.open")
    n, batch_size = whole_number("n", n, 1), whole_number("batch_size", batch_size, 1)
    generator = None if rng is None else generator_of(rng)
    own = as_encoder(encoder)
    samples = samples_by_key(source)
    if differences := store.config.diff({**own.config, "dataset": source.name}):
        raise ConfigMismatchError(store.path, differences)
    stored = [key for key, row in zip(samples, store.find(list(samples)).tolist(), strict=True) if row >= 0]
    chosen = _spread(stored, n, generator)
    found = compare_samples(store, {key: samples[key] for key in chosen})
    if len(found.stored) < len(chosen):  # take others for those whose content changed
        seen = set(chosen)
        others = _spread([key for key in stored if key not in seen], _OTHERS * n, generator)
        more = compare_samples(store, {key: samples[key] for key in others}).stored
        found.stored.extend(more[: len(chosen) - len(found.stored)])
    if not found.stored:
        raise EmptySourceError(None, "none of its samples is stored with the content that it has now")
    if own.fields is not None:
        own = own.with_fields([name for name in store.fields if name in own.fields] or list(store.fields))
    differing: dict[str, float] = {}
    for start in range(0, len(found.stored), batch_size):
        keys = found.stored[start : start + batch_size]
        for name, difference in _differences(own, {key: samples[key] for key in keys}, store).items():
            differing[name] = max(differing.get(name, 0.0), difference)
    tolerances = {
        name: _tolerance(store.fields[name].dtype, store.config) if tolerance is None else tolerance
        for name in differing
    }
    return CanaryReport(
        keys=tuple(found.stored), differences=differing, tolerances=tolerances, stale=tuple(found.stale)
    )


def _spread(keys: Sequence[str], n: int, rng: np.random.Generator | None) -> list[str]:
    count = min(n, len(keys))
    evenly = np.linspace(0, len(keys) - 1, count).round().astype(int)
    places = evenly if rng is None else np.sort(rng.choice(len(keys), size=count, replace=False))
    return [keys[place] for place in places.tolist()]


def recheck(store: EmbeddingStore, encoder: BaseEncoder, samples: Samples, stored: Sequence[str], n: int) -> None:
    """Encode `n` stored samples again, since the code of an encoder in memory may have changed without its config.

    Samples that can't be read, or have other content now, are left out. So are fields that the store lacks.

    Parameters
    ----------
    store : EmbeddingStore
    encoder : BaseEncoder
    samples : mapping of str to Sample
    stored : sequence of str
        Keys with a current row.
    n : int

    Raises
    ------
    EncoderChangedError, RandomEncoderError
    """
    if encoder.fields is not None:
        if not (common := [name for name in store.fields if name in encoder.fields]):
            return
        encoder = encoder.with_fields(common)
    keys = _spread(stored, _OTHERS * n, None)
    for key, digest in zip(keys, stored_digests(store, store.find(keys)), strict=True):
        if not n or not (items := _decoded_again(encoder, [(samples[key], digest)])):
            continue
        n -= 1
        for name, rows in _named(named_rows(encoder.encode(items)), store, 1).items():
            tolerance = _tolerance(store.fields[name].dtype, store.config)
            difference = _difference(name, store.fetch([key], name), rows)
            if difference <= tolerance:
                continue
            items = _decoded_again(encoder, [(samples[key], digest)]) or items
            is_random = _difference(name, rows, _named(named_rows(encoder.encode(items)), store, 1)[name]) > tolerance
            error = RandomEncoderError if is_random else EncoderChangedError
            raise error(key, name, difference=difference, tolerance=tolerance, path=store.path)


def _decoded_again(encoder: BaseEncoder, chosen: Iterable[tuple[AnySample, str]]) -> list[Any]:
    """Return the decoded content of samples. Empty if one can't be read or decoded, or has another digest now."""
    items = []
    for sample, digest in chosen:
        try:
            content, item = read_and_decode(sample, encoder)
            if content.digest != without_kind(digest):
                return []
            items.append(item)
        except Exception as error:
            sample_error(error, sample)
            return []
    return items


def check_repeats(encoder: BaseEncoder, batch: Sequence[Decoded], values: Mapping[Any, Any], path: PurePath) -> None:
    """Encode the first batch of a new store again, then its first and its last sample alone, and compare the rows.

    The samples are decoded again too, since a decoder may be random. In a padded batch, the longest sample has the same
    values alone, and at most one of the two is the longest.

    Parameters
    ----------
    encoder : BaseEncoder
    batch : sequence of Decoded
    values : mapping of str to array
        Rows that the encoder returned for the batch, by field. None is the only field.
    path : PurePath
        Path of the store.

    Raises
    ------
    RandomEncoderError, BatchDependentError
    """
    first = {name: _rows(name, rows, 0, _COMPARED) for name, rows in values.items()}
    if not (items := _decoded_again(encoder, [(done.sample, done.digest) for done in batch])):
        return  # a file changed just now
    again = named_rows(encoder.encode(items))
    ends = {
        place: {name: _rows(name, rows, place, place + 1)[0] for name, rows in again.items()}
        for place in (0, -1 % len(batch))
    }

    def compare(kind: type[EncoderChangedError], start: int, name: Any, old: Any, new: Any) -> None:
        tolerance = _tolerance(first[name][1], encoder.config)
        for done, before, now in zip(batch[start:], old, new, strict=False):
            if (difference := _difference(name, [before], [now])) > tolerance:
                raise kind(done.key, name, difference=difference, tolerance=tolerance, path=path)

    for name, (known, _) in first.items():
        compare(RandomEncoderError, 0, name, known, _rows(name, again[name], 0, _COMPARED)[0])
    for place, rows_of in ends.items() if len(batch) > 1 else ():
        with naming(f"{batch[place].key} is encoded alone, to find values that depend on the batch"):
            alone = named_rows(encoder.encode(items[place : place + 1]))
        for name, rows in alone.items():
            compare(BatchDependentError, place, name, rows_of[name], _rows(name, rows)[0])


def _tolerance(dtype: str, config: Mapping[str, Any]) -> float:
    """Return the default tolerance of a stored dtype. A coarser compute dtype decides, and integers have none."""
    found = _TOLERANCE.get(dtype, 0.0)
    return max(found, _TOLERANCE.get(str(config.get("compute_dtype")), 0.0)) if found else 0.0


def _differences(encoder: BaseEncoder, samples: Samples, store: EmbeddingStore) -> dict[str, float]:
    """Return how much a batch differs from its stored rows, by field. Only one batch is in memory at a time."""
    items = [read_and_decode(sample, encoder)[1] for sample in samples.values()]
    values = named_rows(encoder.encode(items))
    known = _named(values, store, len(items))
    if not known:
        raise UnknownFieldError(next(iter(values), None), store.fields, path=store.path)
    return {name: _difference(name, store.fetch(list(samples), name), rows) for name, rows in known.items()}


def _named(values: Mapping[Any, Any], store: EmbeddingStore, count: int) -> dict[str, Any]:
    """Return the `count` rows of each field of `named_rows`, without the fields that the store lacks."""
    named = {store.field_name() if name is None else name: rows for name, rows in values.items()}
    known = {name: rows for name, rows in named.items() if name in store.fields}
    for name, rows in known.items():
        if len(rows.lengths if isinstance(rows, Padded) else rows) != count:
            raise ShapeError(name, expected=f"{count} rows", found=f"{len(rows)} rows")
    return known


def _rows(name: Any, values: Any, start: int = 0, stop: int | None = None) -> tuple[list[np.ndarray[Any, Any]], str]:
    """Return a copy of some rows as float64, and the dtype of the values. An encoder may use its memory again.

    Values that are no numbers give no rows. The writer refuses them.
    """
    dtype = ""
    if isinstance(values, Padded):
        values = [row[:length] for row, length in zip(*values, strict=True)]
    elif not isinstance(values, Ragged | list | tuple):
        values, dtype = _numbers(name, values)
        values = np.atleast_1d(values)
    found = [_numbers(name, row) for row in itertools.islice(values, start, stop)]
    rows = [row.astype(np.float64) for row, _ in found if row.dtype.kind in "biuf"]
    return rows, dtype or next((each for _, each in found), "")


def _numbers(name: Any, values: Any) -> tuple[np.ndarray[Any, Any], str]:
    rows, dtype = as_rows(values, str(name))
    return widen_bfloat16(rows) if dtype == BFLOAT16 else rows, dtype


def _difference(name: str, stored: Any, again: Any) -> float:
    """Return the largest difference of two numbers, relative to the largest number of the stored row."""
    largest = 0.0
    for old, new in zip(_rows(name, stored)[0], _rows(name, again)[0], strict=True):
        if new.shape != old.shape:
            if isinstance(stored, np.ndarray):
                raise ShapeError(name, expected=old.shape, found=new.shape)
            return np.inf
        same = (new == old) | (np.isnan(new) & np.isnan(old))  # a field may allow NaN and infinity
        scale = max(float(np.abs(old[np.isfinite(old)]).max(initial=0.0)), 1e-12)
        difference = float(np.abs(new[~same] - old[~same]).max(initial=0.0))
        largest = max(largest, difference / scale if np.isfinite(difference) else np.inf)
    return largest

"""Canaries: a few stored samples are encoded again, to find values that an upgrade of the libraries changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embstore._engine.format.ragged import Padded
from embstore._engine.pickles import PickledByName
from embstore.encoders.base import BaseEncoder, Encoder, as_encoder
from embstore.errors import ConfigMismatchError, EmptySourceError, ShapeError, UnknownFieldError
from embstore.pipeline.decode_ahead import read_and_decode
from embstore.pipeline.freshness import compare_samples
from embstore.pipeline.run import Samples
from embstore.sources.base import Source, samples_by_key
from embstore.store.embedding_store import EmbeddingStore

_OTHERS = 16  # factor of further samples that are compared if some are stale
_TOLERANCE: Mapping[str, float] = {"float32": 1e-4, "float64": 1e-4, "float16": 1e-2, "bfloat16": 3e-2}


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryReport(PickledByName):
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
    rng: np.random.Generator | None = None,
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
        float16 and 3e-2 for bfloat16.
    rng : numpy.random.Generator, optional
        Generator that chooses the samples. By default they are spread evenly over the source.

    Raises
    ------
    ConfigMismatchError
        The store was made with another encoder or source.
    EmptySourceError
        None of the source's samples is stored with its present content.
    """
    if batch_size < 1:
        raise ValueError(f"expected a batch of at least one sample, found {batch_size}")
    own = as_encoder(encoder)
    if differences := store.config.diff({**own.config, "dataset": source.name}):
        raise ConfigMismatchError(store.path, differences)
    samples = samples_by_key(source)
    stored = [key for key, row in zip(samples, store.find(list(samples)).tolist(), strict=True) if row >= 0]
    chosen = _spread(stored, n, rng)
    found = compare_samples(store, {key: samples[key] for key in chosen})
    if len(found.stored) < len(chosen):  # take others for those whose content changed
        seen = set(chosen)
        others = _spread([key for key in stored if key not in seen], _OTHERS * n, rng)
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
        name: _TOLERANCE.get(store.fields[name].dtype, 0.0) if tolerance is None else tolerance for name in differing
    }
    return CanaryReport(
        keys=tuple(found.stored), differences=differing, tolerances=tolerances, stale=tuple(found.stale)
    )


def _spread(keys: Sequence[str], n: int, rng: np.random.Generator | None) -> list[str]:
    count = min(n, len(keys))
    evenly = np.linspace(0, len(keys) - 1, count).round().astype(int)
    places = evenly if rng is None else np.sort(rng.choice(len(keys), size=count, replace=False))
    return [keys[place] for place in places.tolist()]


def _differences(encoder: BaseEncoder, samples: Samples, store: EmbeddingStore) -> dict[str, float]:
    """Return how much a batch differs from its stored rows, by field. Only one batch is in memory at a time."""
    values = encoder.encode([read_and_decode(sample, encoder)[1] for sample in samples.values()])
    named = dict(values) if isinstance(values, Mapping) else {store.field_name(): values}
    known = {name: rows for name, rows in named.items() if name in store.fields}
    if not known:
        raise UnknownFieldError(next(iter(named), None), store.fields, path=store.path)
    for name, rows in known.items():
        if len(rows) != len(samples):
            raise ShapeError(name, expected=f"{len(samples)} rows", found=f"{len(rows)} rows")
    return {name: _difference(name, store.fetch(list(samples), name), rows) for name, rows in known.items()}


def _difference(name: str, stored: Any, again: Any) -> float:
    """Return the largest difference of two numbers, relative to the largest number of the stored row."""
    is_padded = isinstance(stored, Padded)
    rows = [row[:length] for row, length in zip(*stored, strict=True)] if is_padded else stored
    largest = 0.0
    for old, row in zip(rows, again, strict=True):
        new = np.asarray(row.double() if hasattr(row, "double") else row, dtype=np.float64)
        if is_padded and len(new) != len(old):
            return np.inf
        if new.shape != old.shape:
            raise ShapeError(name, expected=old.shape, found=new.shape)
        old = old.astype(np.float64)
        same = (new == old) | (np.isnan(new) & np.isnan(old))  # a field may allow NaN and infinity
        scale = max(float(np.abs(old[np.isfinite(old)]).max(initial=0.0)), 1e-12)
        difference = float(np.abs(new[~same] - old[~same]).max(initial=0.0))
        largest = max(largest, difference / scale if np.isfinite(difference) else np.inf)
    return largest

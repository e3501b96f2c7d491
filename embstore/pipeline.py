"""The embedding loop: samples through an encoder into a cache, only those that are missing or stale."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

from embstore.cache import DIGEST_COLUMN, Cache, coverage
from embstore.config import Config
from embstore.errors import DuplicateKeysError
from embstore.keys import Key
from embstore.progress import Progress, reporting

__all__ = ["EmbedResult", "Encoder", "Sample", "Source", "digest_of", "embed"]

logger = logging.getLogger("embstore")


@dataclass(frozen=True, slots=True)
class Sample:
    """One thing to encode.

    Attributes
    ----------
    key : str or Key
    load : callable
        Returns what the encoder takes; called only if the sample is to be encoded.
    digest : str
        Of the content that `load` returns; another one makes the stored row stale.
    """

    key: str | Key
    load: Callable[[], Any]
    digest: str


class Source(Protocol):
    """Where samples come from. Its name becomes the config's ``dataset``, so that no two share rows."""

    @property
    def name(self) -> str:
        """Name of the data set."""

    def __iter__(self) -> Iterator[Sample]:
        """Iterate over the samples, without loading them."""


class Encoder(Protocol):
    """What turns samples into embeddings."""

    @property
    def config(self) -> Mapping[str, Any]:
        """All that the values depend on; known without loading weights into a model."""

    def encode(self, items: Sequence[Any]) -> Any:
        """Return rows for the items: ``(len(items), *shape)``, or a mapping of field names to these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedResult:
    """What a run of `embed` did: the wanted samples, by what became of them, and where they are."""

    path: Path
    config: Config = field(repr=False)
    samples: int
    hits: int
    encoded: int
    stale: int
    seconds: float
    reason: str


def digest_of(content: bytes | str) -> str:
    """Return the digest of a sample's content: BLAKE2b-128, 32 hexadecimal digits."""
    data = content.encode() if isinstance(content, str) else content
    return blake2b(data, digest_size=16).hexdigest()


def embed(
    source: Source,
    encoder: Encoder,
    cache: Cache,
    *,
    batch_size: int = 32,
    interval: float = 2.0,
    progress: Progress = None,
    columns: Callable[[Sample], Mapping[str, Any]] | None = None,
) -> EmbedResult:
    """Encode the samples of a source that a cache does not have, or has of other content.

    Rows are committed at least every `interval` seconds, so that a killed run loses no more work than that and
    the batch at hand, and the next run goes on from there. If nothing is missing, `encode` is not called.

    Parameters
    ----------
    source : Source
    encoder : Encoder
    cache : Cache
    batch_size : int
        Samples that are encoded at a time; it is not part of the config.
    interval : float
        Seconds.
    progress : callable, bool or None
        A function of (done, total), or True for a bar.
    columns : callable, optional
        Gives a sample's values of further columns.

    Returns
    -------
    EmbedResult

    Raises
    ------
    DuplicateKeysError
        Two samples have the same key.
    """
    if batch_size < 1:
        raise ValueError(f"expected a batch of at least one sample, found {batch_size}")
    started = time.monotonic()
    config = Config(encoder.config, dataset=source.name)
    samples = _by_key(source)
    digests = {key: sample.digest for key, sample in samples.items()}
    reason = cache.lookup(config, list(samples), digests=digests).reason
    logger.info("%s: %s", source.name, reason)
    with cache.open(config, "a") as store:
        if store.fields and DIGEST_COLUMN not in store.columns:  # rows of unknown content are encoded again
            store.set_column(DIGEST_COLUMN, [], [], fill="")
        missing, stale = coverage(store, list(samples), digests)
        wanted = [*((key, "missing") for key in missing), *((key, "stale") for key in stale)]
        if wanted:
            # Another process may have added a missing row meanwhile: its row is as good.
            with (
                store.writer(interval=interval, if_exists="skip") as fresh,
                store.writer(interval=interval, if_exists="replace") as renewed,
                reporting(progress, len(wanted), source.name) as advance,
            ):
                writers = {"missing": fresh, "stale": renewed}
                for kind, writer in writers.items():
                    keys = [key for key, why in wanted if why == kind]
                    for start in range(0, len(keys), batch_size):
                        batch = keys[start : start + batch_size]
                        rows = encoder.encode([samples[key].load() for key in batch])
                        writer.add_many(batch, rows, columns=_columns([samples[key] for key in batch], columns))
                        advance(len(batch))
                    writer.flush()  # rows that are done don't wait for those of the other kind
        return EmbedResult(
            path=store.path,
            config=config,
            samples=len(samples),
            hits=len(samples) - len(wanted),
            encoded=len(wanted),
            stale=len(stale),
            seconds=time.monotonic() - started,
            reason=reason,
        )


def _by_key(source: Source) -> dict[str, Sample]:
    samples: dict[str, Sample] = {}
    for sample in source:
        key = str(Key.parse(sample.key))
        if key in samples:
            raise DuplicateKeysError([key])
        samples[key] = sample
    return samples


def _columns(samples: Sequence[Sample], more: Callable[[Sample], Mapping[str, Any]] | None) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {DIGEST_COLUMN: [sample.digest for sample in samples]}
    for sample in samples if more is not None else ():
        for name, value in more(sample).items():  # type: ignore[misc]
            columns.setdefault(name, []).append(value)
    return columns

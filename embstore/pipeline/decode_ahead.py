"""Reading and decoding ahead: threads prepare the next batches while the encoder runs."""

from __future__ import annotations

import contextlib
import functools
import itertools
import numbers
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from embstore._engine.io.stamps import FileStamp
from embstore._engine.pickles import by_name
from embstore.encoders.base import BaseEncoder
from embstore.pipeline.modality import misfit
from embstore.sources.base import AnySample, Content, open_sample, sample_error, stored_digest

Known = Callable[[str, str], bool]

_BATCHES_AHEAD: Final = 2
_BATCHES_SORTED: Final = 8
"""Number of batches whose items are sorted by length, if the encoder pads."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A sample to encode, with the digest (as it is stored) and the stamp of the very content that was decoded."""

    key: str
    sample: AnySample
    item: Any
    length: int
    digest: str
    stamp: FileStamp


@dataclass(frozen=True, slots=True)
class Failure:
    """A sample that could not be encoded. It makes no row, and the next run tries it again.

    Attributes
    ----------
    key : str
    where : str
        Path of the file, or another description of the sample's origin.
    reason : str
    """

    key: str
    where: str
    reason: str

    def __reduce__(self) -> tuple[Any, ...]:
        return by_name("embstore:EmbedResult._failure", self.key, self.where, self.reason)

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}" + ("" if self.where in (self.key, "") else f" ({self.where})")


def read_and_decode(
    sample: AnySample, encoder: BaseEncoder, known: Callable[[str], bool] = lambda digest: False
) -> tuple[Content, Any]:
    """Return a sample's content and the decoded item, or None if the stored digest of the content is known.

    An encoder that opens files reads them only as far as needed: four WAV files of 400 MB each, of which one second
    was encoded, took 1.8 GB of memory when files were read whole. The value of the content is then a closed file.
    """
    with open_sample(sample) if encoder.opens_files else contextlib.nullcontext(sample.read()) as content:
        return content, None if known(stored_digest(sample, content)) else encoder.decode(content.value)


def _decoded(key: str, sample: AnySample, encoder: BaseEncoder, known: Known) -> Decoded | Failure:
    if reason := misfit(sample, encoder.modality):
        return Failure(key, sample.where, reason)
    try:
        content, item = read_and_decode(sample, encoder, functools.partial(known, key))
        length = 0 if item is None else encoder.length(item)
        if not isinstance(length, numbers.Real):
            raise TypeError(f"expected a number as the length of an item, found {length!r:.80}")
        return Decoded(key, sample, item, length, stored_digest(sample, content), content.stamp)
    except Exception as error:
        return Failure(key, sample.where, sample_error(error, sample).reason)


def decoded_ahead(
    samples: Iterable[tuple[str, AnySample]],
    encoder: BaseEncoder,
    *,
    workers: int,
    batch_size: int,
    known: Known = lambda key, digest: False,
) -> Generator[Decoded | Failure]:
    """Read and decode samples in threads, and yield them in order. A few batches are in progress at a time.

    Parameters
    ----------
    samples : iterable of (str, Sample)
        Consumed on demand: each consumed sample is decoded.
    encoder : BaseEncoder
    workers : int
        Number of threads.
    batch_size : int
    known : callable
        Returns for a key and a digest, as it is stored, whether the sample need not be decoded.

    Yields
    ------
    Decoded or Failure
    """
    left = iter(samples)
    under_way: deque[Future[Decoded | Failure]] = deque()
    ahead = _BATCHES_AHEAD * batch_size
    pool = ThreadPoolExecutor(workers, thread_name_prefix="embstore-decode")
    try:
        while True:
            for key, sample in itertools.islice(left, ahead - len(under_way)):
                under_way.append(pool.submit(_decoded, key, sample, encoder, known))
            if not under_way:
                return
            done = under_way.popleft().result()
            if isinstance(done, Decoded) and done.length:
                ahead = _BATCHES_SORTED * batch_size
            yield done
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def batches(items: Iterable[Decoded], batch_size: int) -> Iterator[list[Decoded]]:
    """Gather items into batches. Items with lengths are sorted by length, the longest first.

    The longest come first, so that a batch too large for the memory fails at once.
    """
    left = iter(items)
    while gathered := list(itertools.islice(left, batch_size)):
        if any(item.length for item in gathered):
            gathered += itertools.islice(left, (_BATCHES_SORTED - 1) * batch_size)
            gathered.sort(key=lambda item: -item.length)
        for start in range(0, len(gathered), batch_size):
            yield gathered[start : start + batch_size]

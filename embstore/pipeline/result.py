"""`EmbedResult`: the counts, failures and rows of a run of `embed`."""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.config import Config
from embstore._engine.io.urls import without_secrets
from embstore._engine.notebook import html_table
from embstore._engine.pickles import PickledByName
from embstore._engine.sizes import size as size_text
from embstore.errors import MissingKeysError, PartialResultError
from embstore.pipeline.decode_ahead import Failure
from embstore.store.embedding_store import EmbeddingStore, View
from embstore.store.open import open as open_store

_KEYS_SHOWN: Final = 5
_REASONS_SHOWN: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedResult(PickledByName):
    """Result of a run of `embed`.

    Attributes
    ----------
    path : Path, or a URL of type PurePath
        Place of the store.
    config : Config
    reason : str
        Hit, or how the cache missed.
    samples : int
        Wanted samples.
    hits : int
        Wanted samples that were stored and current.
    encoded : int
        Samples that this run encoded.
    copied : int
        Wanted samples that got a copy of the row of another key, which was made from the same content.
    relabelled : dict of str to str
        New key of each row that moved, by the old key, which is gone from the source. Nothing was encoded for it.
    stale : int
        Wanted samples that were stored with other content.
    failed : tuple of Failure
        Samples that could not be read, decoded or encoded. The next run tries them again.
    vanished : tuple of str
        Stored keys of the same origin that the source no longer has. They are deleted only on request.
    deleted : int
        Number of these rows that this run deleted.
    fields_added : tuple of str
        Fields that were stored for the first time.
    keys : tuple of str
        Samples with a current row in the store at `path`, in the order of the source.
    wanted : tuple of str
        All samples of the source, in its order. For a shard, those of its part.
    shard : (int, int) or None
        The part ``(i, n)`` that the run encoded.
    rows : int
        Live rows of the store.
    nbytes : int
        Bytes of all rows of the store.
    seconds : float
        Duration of the run.
    storage_options : mapping or None
        Options of the bucket of the store. A pickled result holds no credentials.
    """

    path: PurePath
    config: Config = field(repr=False)
    reason: str
    samples: int
    hits: int
    encoded: int
    copied: int = 0
    relabelled: dict[str, str] = field(default_factory=dict)
    stale: int
    failed: tuple[Failure, ...] = ()
    vanished: tuple[str, ...] = ()
    deleted: int = 0
    fields_added: tuple[str, ...] = ()
    keys: tuple[str, ...] = field(default=(), repr=False)
    wanted: tuple[str, ...] = field(default=(), repr=False)
    shard: tuple[int, int] | None = None
    rows: int
    nbytes: int
    seconds: float
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return PickledByName.__reduce__(_without_secrets(self))

    @staticmethod
    def _failure(key: str, where: str, reason: str) -> Failure:
        return Failure(key, where, reason)

    @property
    def ok(self) -> bool:
        """Whether every wanted sample is stored."""
        return not self.failed

    @property
    def store(self) -> EmbeddingStore:
        """The store, opened for reading. It may have rows of other samples. Each chunk is checked at its first read."""
        return open_store(self.path, check="touched", storage_options=self.storage_options)

    @property
    def view(self) -> View:
        """The rows of this run's samples, in the order of the source.

        Rows that are known to be wrong are left out: rows of samples that failed, and rows whose sample is gone.

        Raises
        ------
        PartialResultError
            The run encoded a shard, whose store lacks the other parts.
        MissingKeysError
            Rows were deleted, erased or moved to other keys since the run.
        """
        self._refuse_shard("view")
        try:
            return self.store.select(keys=self.keys)
        except MissingKeysError as error:
            hint = "they were deleted or relabelled since the run: call embed again"
            raise MissingKeysError(error.keys, path=self.path, others=error.others, hint=hint) from error

    @property
    def found(self) -> NDArray[np.bool_]:
        """Mask of the source's samples, in its order: True for those with a row in `view`. ``(samples,) bool``.

        ``model.fit(result.view.to_numpy(), frame["label"][result.found])`` pairs rows with labels.

        Raises
        ------
        PartialResultError
            The run encoded a shard.
        """
        self._refuse_shard("found")
        current = set(self.keys)
        return np.fromiter((key in current for key in self.wanted), bool, len(self.wanted))

    def _refuse_shard(self, what: str) -> None:
        if self.shard is not None:
            raise PartialResultError(what, self.shard, path=self.path)

    def missing(self) -> list[str]:
        """Return the keys of the samples without a current row: those that failed."""
        return [failure.key for failure in self.failed]

    def _repr_html_(self) -> str:
        counts = {name: f"{getattr(self, name):,}" for name in ("samples", "hits", "stale", "encoded")}
        counts |= {"failed": f"{len(self.failed):,}", "seconds": f"{self.seconds:.3g}", "rows": f"{self.rows:,}"}
        counts["size"] = size_text(self.nbytes)
        more = "".join(f"<pre>{html.escape(line)}</pre>" for line in str(self).split("\n")[2:])
        return html_table([counts.values()], header=counts, caption=str(self.path)) + more

    def __str__(self) -> str:
        lines = [
            f"{self.samples:,} samples: {self.hits:,} hits, {self.stale:,} stale, {self.encoded:,} encoded, "
            f"{len(self.failed):,} failed, in {self.seconds:.3g} s",
            f"{self.rows:,} rows, {size_text(self.nbytes)} in {self.path}",
        ]
        if self.copied or self.relabelled:
            lines.append(f"{len(self.relabelled):,} relabelled, {self.copied:,} copied from rows of the same content")
        if self.fields_added:
            lines.append(f"fields added: {', '.join(self.fields_added)}")
        if self.vanished:
            keys = ", ".join(self.vanished[:_KEYS_SHOWN]) + (", …" if len(self.vanished) > _KEYS_SHOWN else "")
            deleted = f", {self.deleted:,} of them deleted" if self.deleted else ""
            lines.append(f"{len(self.vanished):,} rows whose sample is gone{deleted}: {keys}")
        if self.failed:
            lines += ["failed, and tried again by the next run:", *(f"  {line}" for line in folded(self.failed))]
        return "\n".join(lines)


def _without_secrets(result: EmbedResult) -> EmbedResult:
    return replace(result, storage_options=without_secrets(result.storage_options))


def folded(failures: Sequence[Failure]) -> list[str]:
    """Return failures as text, one line for each reason. Reasons that differ in numbers only are the same."""
    groups: dict[str, list[Failure]] = {}
    for failure in failures:
        groups.setdefault(re.sub(r"0x[0-9a-f]+|[\d,]*\d", "0", failure.reason), []).append(failure)
    lines = []
    for alike in itertools.islice(groups.values(), _REASONS_SHOWN):
        keys = [failure.key for failure in alike[:_KEYS_SHOWN]] + (["…"] if len(alike) > _KEYS_SHOWN else [])
        many = f"{len(alike):,} samples: {alike[0].reason}: {', '.join(keys)}"
        lines.append(many if len(alike) > 1 else str(alike[0]))
    if left := list(itertools.islice(groups.values(), _REASONS_SHOWN, None)):
        lines.append(f"{sum(map(len, left)):,} samples for {len(left):,} other reasons")
    return lines

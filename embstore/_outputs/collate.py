"""Batches that were gathered at once, and the default collate of PyTorch, which takes them whole. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data._utils.collate import default_collate_fn_map


class Batch(Sequence[Any]):
    """A batch that was gathered, which behaves as a list of its samples for any other collate function."""

    def __init__(self, whole: Any, count: int, ragged: Sequence[Any] = ()) -> None:
        self.whole = whole
        self.ragged = ragged  # where in a sample padded rows are
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(index)
        if isinstance(self.whole, dict):
            mapping = _MappingSample({name: values[index] for name, values in self.whole.items()})
            mapping.batch = self
            return mapping
        sample = _TupleSample(values[index] for values in self.whole)
        sample.batch = self
        return sample


class _TupleSample(tuple[Any, ...]):
    """A sample that remembers the batch in which it was gathered."""

    batch: Batch

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (tuple(self),)


class _MappingSample(dict[str, Any]):
    """A sample that remembers the batch in which it was gathered."""

    batch: Batch

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


def _whole(batch: Any, *, collate_fn_map: Any = None) -> Any:
    """Collate a batch that was gathered: it is whole already."""
    if isinstance(batch, Batch):
        return batch.whole
    plain = [list(s) if isinstance(s, tuple) else dict(s) for s in batch]  # samples gathered one by one
    for place in batch[0].batch.ragged:
        padded = pad_sequence([sample[place] for sample in plain], batch_first=True)
        for sample, rows in zip(plain, padded, strict=True):
            sample[place] = rows
    return torch.utils.data.default_collate([tuple(s) if isinstance(s, list) else s for s in plain])


# The default collate looks here by the type of a batch's first sample; it is the way that torch documents for
# types of one's own (torch.utils.data.default_collate).
default_collate_fn_map[_TupleSample] = _whole
default_collate_fn_map[_MappingSample] = _whole

"""Batches that were read with one gather, and their part in PyTorch's default collate. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data._utils.collate import default_collate_fn_map


class Batch(Sequence[Any]):
    """A batch that was read with one gather. For any other collate function it is a list of its samples."""

    def __init__(self, whole: Any, count: int, ragged: Sequence[Any] = ()) -> None:
        self.whole = whole
        self.ragged = ragged  # places or names of padded rows in a sample
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
    """A sample that has a reference to its batch."""

    batch: Batch

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (tuple(self),)


class _MappingSample(dict[str, Any]):
    """A sample that has a reference to its batch."""

    batch: Batch

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


def _whole(batch: Any, *, collate_fn_map: Any = None) -> Any:
    """Collate a gathered batch, which needs no copy. Samples that were read one by one are padded and collated."""
    if isinstance(batch, Batch):
        return batch.whole
    plain = [list(s) if isinstance(s, tuple) else dict(s) for s in batch]  # samples read one by one
    for place in batch[0].batch.ragged:
        padded = pad_sequence([sample[place] for sample in plain], batch_first=True)
        for sample, rows in zip(plain, padded, strict=True):
            sample[place] = rows
    return torch.utils.data.default_collate([tuple(s) if isinstance(s, list) else s for s in plain])


# The default collate looks up the type of a batch's first sample here. torch documents this for custom types
# (torch.utils.data.default_collate).
default_collate_fn_map[_TupleSample] = _whole
default_collate_fn_map[_MappingSample] = _whole

"""A client's part of a store as a sequence of samples, as PFLlib's own lists are. Imports torch when it is imported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, SupportsIndex, overload

import numpy as np
from numpy.typing import NDArray

from embstore import View
from embstore._engine.read.snapshot import Snapshot
from embstore._outputs.tensors import as_tensor
from embstore.errors import MissingLibraryError

try:
    import torch
    from torch.utils.data import default_collate
    from torch.utils.data._utils.collate import default_collate_fn_map
except ImportError as error:
    raise MissingLibraryError("torch", "fl", "for embstore_fl.pfllib") from error

Sample = tuple[torch.Tensor, torch.Tensor]

_BLOCK: Final = 256
"""Rows read at a time where all samples are asked for one after the other."""

_SMALL: Final = 128 * 2**10
"""Bytes up to which a batch is small."""


class ClientData(Sequence[Sample]):
    """Samples ``(x, y)``: a row as float32, and its label as an int64 tensor of no dimension.

    Nothing is read before a sample is asked for. A slice is such a sequence again. A batch of a
    `torch.utils.data.DataLoader` is one gather (``__getitems__``), and collated it is what the default collate makes of
    a list of the same samples. What is pickled is where the store is, row numbers and labels.

    Parameters
    ----------
    view : View
    labels : ndarray, (len(view),) int64
    field : str
        Not a ragged one.

    Examples
    --------
    >>> import embstore, tempfile
    >>> store = embstore.open(tempfile.mkdtemp() + "/demo.zarr", "w-", config={"encoder": "demo"})
    >>> _ = store.append(["a:dog", "b:cat", "c:cat"], np.eye(3, dtype=np.float32))
    >>> data = ClientData(store.select(), np.array([1, 0, 0]), "embedding")
    >>> data[-1]
    (tensor([0., 0., 1.]), tensor(0))
    >>> [int(y) for _, y in data[:2]]
    [1, 0]
    """

    __slots__ = ("_rows", "field", "labels", "view")

    def __init__(self, view: View, labels: NDArray[np.int64], field: str) -> None:
        self.view = view
        self.labels = labels
        self.field = field
        self._rows: _Rows | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> ClientData: ...

    def __getitem__(self, index: SupportsIndex | slice) -> Sample | ClientData:
        """Return one sample, or those of a slice."""
        if isinstance(index, slice):
            return self.at(index)
        place = range(len(self))[index]  # checks it, and counts negative ones from the end
        x, y = self._gathered(np.array([place]))
        return x[0], y[0]

    def __iter__(self) -> Iterator[Sample]:
        for start in range(0, len(self), _BLOCK):
            yield from zip(*self._gathered(slice(start, start + _BLOCK)), strict=True)

    def __getitems__(self, indices: Sequence[int]) -> Sequence[Sample]:
        """Return the samples of a batch, gathered at once; the default collate takes them whole."""
        return _Batch(*self._gathered(np.asarray(indices, dtype=np.int64)))

    def at(self, places: slice | NDArray[Any]) -> ClientData:
        """Return the samples at some places, as a sequence again; nothing is read."""
        return ClientData(self.view[places], self.labels[places], self.field)

    def first_of_each(self, count: int) -> ClientData:
        """Return the first `count` samples of each label, in the order of this sequence; nothing is read."""
        order = np.argsort(self.labels, kind="stable")
        _, counts = np.unique(self.labels, return_counts=True)
        within = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self.at(np.sort(order[within < count]))

    def _gathered(self, places: slice | NDArray[np.int64]) -> Sample:
        """Read the samples at some places: ``(n, *shape) float32`` and ``(n,) int64``, the caller's own."""
        snapshot = self.view.snapshot()
        if self._rows is None or self._rows.snapshot is not snapshot:
            self._rows = _Rows(snapshot, self.field)
        values = self._rows.take(self.view.rows[places])
        x = torch.from_numpy(values) if values.dtype == np.float32 else self._rows.as_float32(values)
        labels = self.labels[places]
        return x, torch.from_numpy(labels if labels.flags.owndata else labels.copy())

    def __getstate__(self) -> tuple[View, NDArray[np.int64], str]:
        return self.view, self.labels, self.field

    def __setstate__(self, state: tuple[View, NDArray[np.int64], str]) -> None:
        self.view, self.labels, self.field = state
        self._rows = None

    def __repr__(self) -> str:
        return f"<ClientData of {len(self):,} samples of {self.field!r} in {str(self.view.store.path)!r}>"


class _Rows:
    """Rows of a field in one commit.

    Small batches of mapped rows are taken by NumPy alone. It checks the numbers as well, and for ten rows of 3 kB is
    done in 4 us, where the reader's own checks and its care for large blocks are as long again as PFLlib's loop
    over such a batch: 85 instead of 45 us.
    """

    __slots__ = ("_few", "_field", "_mapped", "snapshot")

    def __init__(self, snapshot: Snapshot, field: str) -> None:
        self.snapshot = snapshot
        self._field = field
        self._few = -1
        if snapshot.check == "tail" and (mapped := snapshot.mapped(field)) is not None:
            self._few = _SMALL // snapshot.record.arrays[field].row_nbytes
            self._mapped = mapped

    def take(self, rows: NDArray[np.int64]) -> np.ndarray[Any, Any]:
        """Copy rows as they are stored, in the order given: ``(n, *shape)``."""
        if len(rows) <= self._few:
            values: np.ndarray[Any, Any] = self._mapped.take(rows, axis=0)
            return values
        return self.snapshot.take(self._field, rows)

    def as_float32(self, values: np.ndarray[Any, Any]) -> torch.Tensor:
        """Convert rows that are stored as something else."""
        return as_tensor(values, self.snapshot.record.fields[self._field]).to(torch.float32)


class _Batch(Sequence[Sample]):
    """A batch that was gathered, which is a sequence of its samples to any other collate function."""

    __slots__ = ("x", "y")

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x = x
        self.y = y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        return _Gathered((self.x[index], self.y[index]))


class _Gathered(tuple[torch.Tensor, ...]):
    """A sample of a batch that was gathered: the default collate knows it by its type."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (tuple(self),)


def _whole(batch: Any, *, collate_fn_map: Any = None) -> Any:
    """Collate a batch that was gathered: it is whole already. A list, as the default collate makes of tuples."""
    if isinstance(batch, _Batch):
        return [batch.x, batch.y]
    return default_collate([tuple(sample) for sample in batch])  # picked from one by a function of the caller's


# The default collate looks here by the type of a batch's first sample; it is the way that torch documents for
# types of one's own (torch.utils.data.default_collate).
default_collate_fn_map[_Gathered] = _whole

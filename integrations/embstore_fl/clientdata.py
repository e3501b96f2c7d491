"""A client's rows as a sequence of samples, like PFLlib's own lists. Importing this module imports torch."""

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
"""Rows read at once when iterating over all samples."""

_SMALL: Final = 128 * 2**10
"""Largest bytes of a small batch."""


class ClientData(Sequence[Sample]):
    """Samples ``(x, y)``: a row ``(*shape) float32``, and its label ``() int64``.

    A row is read when its sample is accessed. A slice is a `ClientData` too. A batch of a
    `torch.utils.data.DataLoader` is one gather (``__getitems__``), and collates to the same tensors as a list of its
    samples. The pickle holds the path of the store, row numbers and labels.

    Parameters
    ----------
    view : View
    labels : ndarray, (len(view),) int64
    field : str
        Not a ragged field.

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
        """Return one sample, or the `ClientData` of a slice."""
        if isinstance(index, slice):
            return self.at(index)
        place = range(len(self))[index]  # checks the index, and resolves negative ones
        x, y = self._gathered(np.array([place]))
        return x[0], y[0]

    def __iter__(self) -> Iterator[Sample]:
        for start in range(0, len(self), _BLOCK):
            yield from zip(*self._gathered(slice(start, start + _BLOCK)), strict=True)

    def __getitems__(self, indices: Sequence[int]) -> Sequence[Sample]:
        """Return the samples of a batch from one gather. The default collate uses its two tensors directly."""
        return _Batch(*self._gathered(np.asarray(indices, dtype=np.int64)))

    def at(self, places: slice | NDArray[Any]) -> ClientData:
        """Return the samples at these positions. No row is read.

        Parameters
        ----------
        places : slice, or ndarray of int or bool
        """
        return ClientData(self.view[places], self.labels[places], self.field)

    def first_of_each(self, count: int) -> ClientData:
        """Return the first `count` samples of each label, in the order of this sequence. No row is read."""
        order = np.argsort(self.labels, kind="stable")
        _, counts = np.unique(self.labels, return_counts=True)
        within = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self.at(np.sort(order[within < count]))

    def _gathered(self, places: slice | NDArray[np.int64]) -> Sample:
        """Read the samples at these positions: copies ``(n, *shape) float32`` and ``(n,) int64``."""
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

    NumPy alone copies small batches of mapped rows. It checks the row numbers as well, and copies ten rows of 3 kB in
    4 us. With the reader's own checks and block logic, PFLlib's loop takes 85 us for such a batch instead of 45 us.
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
        """Return copies of rows in the stored dtype, in the given order: ``(n, *shape)``."""
        if len(rows) <= self._few:
            values: np.ndarray[Any, Any] = self._mapped.take(rows, axis=0)
            return values
        return self.snapshot.take(self._field, rows)

    def as_float32(self, values: np.ndarray[Any, Any]) -> torch.Tensor:
        """Convert rows ``(n, *shape)`` of another dtype to float32."""
        return as_tensor(values, self.snapshot.record.fields[self._field]).to(torch.float32)


class _Batch(Sequence[Sample]):
    """A gathered batch. Other collate functions see a sequence of samples."""

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
    """A sample of a gathered batch. The default collate dispatches on this type."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (tuple(self),)


def _whole(batch: Any, *, collate_fn_map: Any = None) -> Any:
    """Return the two tensors of a gathered batch as a list, as the default collate returns for tuples."""
    if isinstance(batch, _Batch):
        return [batch.x, batch.y]
    return default_collate([tuple(sample) for sample in batch])  # samples that the caller's own function selected


# The default collate dispatches on the type of a batch's first sample. torch documents this registration for custom
# types (torch.utils.data.default_collate).
default_collate_fn_map[_Gathered] = _whole

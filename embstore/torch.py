"""A view as a PyTorch Dataset. Importing this module imports torch; `import embstore` does not."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore.errors import MissingLibraryError, UnknownColumnError

try:
    import torch
    from torch.utils.data import Dataset
except ImportError as error:
    raise MissingLibraryError("torch", "torch", "for embstore.torch") from error

from embstore._engine.format.record import STRING
from embstore._engine.read.read_rows import column_of
from embstore._outputs.collate import Batch
from embstore._outputs.tensors import field_tensors
from embstore.store.as_view import as_view
from embstore.store.embedding_store import EmbeddingStore, View

__all__ = ["EmbeddingDataset"]

_KEY_COLUMNS = {"key": "keys_of", "file_id": "file_ids_of", "class_name": "class_names_of"}
"""Columns that are made of keys, and the snapshot's method that reads each."""


class EmbeddingDataset(Dataset[Any]):
    """A map-style dataset over a view, made for `torch.utils.data.DataLoader` and its default collate.

    A batch is one gather (``__getitems__``), not as many samples collated; with no worker processes that is
    faster than with them, and it is what to use. It works under fork and spawn as well: what is pickled is
    where the store is, and row numbers.

    Parameters
    ----------
    view : View or EmbeddingStore
        All rows of a store.
    classes : sequence of str, optional
        Gives the labels: a class's place in this list, and only in this list, so that clients and machines
        agree.
    fields : sequence of str, optional
        For mappings with these fields, instead of tuples with the only one.
    columns : sequence of str, optional
        For mappings with these columns as well; ``"key"``, ``"file_id"`` and ``"class_name"`` are columns, too.
    dtype : torch.dtype, optional
        To convert embeddings to.

    Attributes
    ----------
    classes : list of str or None
    class_to_idx : dict of str to int
    labels : torch.Tensor, (len(dataset),) int64, or None

    Returns
    -------
    A sample is ``(embedding, label)``; ``(embedding,)`` without `classes`, as `TensorDataset` has it; or a
    mapping, with ``"label"`` where there are `classes`. A ragged field's batch ``(n, longest, *shape)`` is followed by
    its lengths ``(n,) int64``, in a mapping under the field's name with ``_lengths``.

    Raises
    ------
    UnknownClassError
        A row's class is not in `classes`.
    UnknownFieldError, UnknownColumnError
    TypeError
        `view` is neither a view nor a store.

    Examples
    --------
    >>> import embstore, tempfile
    >>> store = embstore.open(tempfile.mkdtemp() + "/demo.zarr", "w-", config={"encoder": "demo"})
    >>> _ = store.append(["a:dog", "b:cat"], np.ones((2, 3), np.float32))
    >>> loader = torch.utils.data.DataLoader(EmbeddingDataset(store.select(), classes=["cat", "dog"]), batch_size=2)
    >>> next(iter(loader))[1]
    tensor([1, 0])
    """

    def __init__(
        self,
        view: View | EmbeddingStore,
        *,
        classes: Sequence[str] | None = None,
        fields: Sequence[str] | None = None,
        columns: Sequence[str] = (),
        dtype: torch.dtype | None = None,
    ) -> None:
        self.view = as_view(view)
        store = self.view.store
        self.classes = None if classes is None else list(classes)
        self.class_to_idx = {name: place for place, name in enumerate(self.classes or ())}
        self._as_mapping = fields is not None or bool(columns)
        self._fields = [store.field_name(name) for name in (fields if fields is not None else [None])]
        self._columns = list(columns)
        for name in self._columns:
            if name not in store.columns and name not in _KEY_COLUMNS:
                raise UnknownColumnError(name, [*store.columns, *_KEY_COLUMNS], path=store.path)
        if self.classes is not None and "label" in (*self._fields, *self._columns) and self._as_mapping:
            raise ValueError('"label" is the class\'s place in `classes`: leave out the field or column of that name')
        for name in self._fields:
            other = f"{name}_lengths"
            if store.fields[name].ragged and self._as_mapping and other in (*self._fields, *self._columns):
                raise ValueError(f"{other!r} is the lengths of {name!r}: leave out the field or column of that name")
        self._dtype = dtype
        _ = self._labels  # raises now, and not in the middle of an epoch

    def __len__(self) -> int:
        return len(self.view)

    @property
    def labels(self) -> torch.Tensor | None:
        """Labels of all samples: ``(len(dataset),) int64``; None without classes."""
        return None if self._labels is None else torch.from_numpy(self._labels.copy())

    @cached_property
    def _labels(self) -> NDArray[np.int64] | None:
        return None if self.classes is None else self.view.labels(self.classes)

    def __getitem__(self, index: int) -> Any:
        """Return one sample."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return the samples of a batch, gathered at once; the default collate takes them whole."""
        places = np.asarray(indices, dtype=np.int64)
        snapshot = self.view.snapshot()
        rows = self.view.rows[places]
        values: dict[str, Any] = {}
        ragged: list[str] = []
        for name in self._fields:
            tensor, lengths = field_tensors(snapshot, name, rows)
            values[name] = tensor if self._dtype is None else tensor.to(self._dtype)
            if lengths is not None:
                values[f"{name}_lengths"] = lengths
                ragged.append(name)
        for name in self._columns:
            if name in _KEY_COLUMNS:
                values[name] = getattr(snapshot, _KEY_COLUMNS[name])(rows)
            else:
                column = column_of(snapshot, name, rows)
                is_text = snapshot.record.columns[name].dtype == STRING
                values[name] = column.tolist() if is_text else torch.from_numpy(column)
        if self._labels is not None:
            values["label"] = torch.from_numpy(self._labels[places])
        if self._as_mapping:
            return Batch(values, len(places), ragged)
        return Batch(list(values.values()), len(places), [list(values).index(name) for name in ragged])

    def __getstate__(self) -> dict[str, Any]:
        """Leave the labels out: they follow from the rows."""
        return {name: value for name, value in self.__dict__.items() if name != "_labels"}

    def __repr__(self) -> str:
        classes = "" if self.classes is None else f", {len(self.classes)} classes"
        return f"<EmbeddingDataset of {len(self):,} samples of {', '.join(self._fields)}{classes}>"

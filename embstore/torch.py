"""A view as a PyTorch Dataset. Importing this module imports torch. `import embstore` does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore._engine.lazy import cached_property
from embstore.errors import MissingLibraryError, UnknownColumnError

try:
    import torch
    from torch.utils.data import Dataset
except ImportError as error:
    raise MissingLibraryError("torch", "torch", "for embstore.torch") from error

from embstore._engine.format.arguments import row_numbers, text_list
from embstore._engine.read.read_rows import KEY_COLUMNS, column_of
from embstore._outputs.collate import Batch
from embstore._outputs.tensors import field_tensors
from embstore.store.as_view import as_view
from embstore.store.embedding_store import EmbeddingStore, View

__all__ = ["EmbeddingDataset"]


class EmbeddingDataset(Dataset[Any]):
    """A map-style dataset over a view for `torch.utils.data.DataLoader` and its default collate.

    A batch is read with one gather (``__getitems__``), not collated from samples. Without worker processes this is
    faster than with them, so use ``num_workers=0``. Workers work under fork and spawn as well: a pickled dataset holds
    the path of the store and row numbers.

    Parameters
    ----------
    view : View or EmbeddingStore
        For a store, all its live rows.
    classes : sequence of str, optional
        The label of a class is its place in this list. The list is required for labels, so that clients and machines
        agree.
    fields : sequence of str, optional
        Samples are mappings with these fields. By default they are tuples with the primary field.
    columns : sequence of str, optional
        Samples are mappings with these columns as well. ``"key"``, ``"file_id"`` and ``"class_name"`` are allowed.
    dtype : torch.dtype, optional
        Embeddings are converted to it. Default: the stored dtype.

    Attributes
    ----------
    classes : list of str or None
    class_to_idx : dict of str to int
    labels : torch.Tensor, (len(dataset),) int64, or None

    Returns
    -------
    A sample is ``(embedding, label)``. Without `classes` it is ``(embedding,)``, as in `TensorDataset`. A mapping has
    ``"label"`` if there are `classes`. The batch of a ragged field ``(n, longest, *shape)`` is followed by its lengths
    ``(n,) int64``, in a mapping under the field's name with ``_lengths``.

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
        self.classes = None if classes is None else text_list("classes", classes)
        self.class_to_idx = {name: place for place, name in enumerate(self.classes or ())}
        self._fields = [store.field_name(name) for name in ([None] if fields is None else text_list("fields", fields))]
        self._columns = text_list("columns", columns)
        self._as_mapping = fields is not None or bool(self._columns)
        for name in self._columns:
            if name not in store.columns and name not in KEY_COLUMNS:
                raise UnknownColumnError(name, [*store.columns, *KEY_COLUMNS], path=store.path)
        if self.classes is not None and "label" in (*self._fields, *self._columns) and self._as_mapping:
            raise ValueError('"label" is the class\'s place in `classes`; leave out the field or column of that name')
        for name in self._fields:
            other = f"{name}_lengths"
            if store.fields[name].ragged and self._as_mapping and other in (*self._fields, *self._columns):
                raise ValueError(f"{other!r} has the lengths of {name!r}; leave out the field or column of that name")
        self._dtype = dtype
        _ = self._labels  # raise now instead of in the middle of an epoch

    def __len__(self) -> int:
        return len(self.view)

    @property
    def labels(self) -> torch.Tensor | None:
        """The labels of all samples: ``(len(dataset),) int64``. None without classes."""
        return None if self._labels is None else torch.from_numpy(self._labels.copy())

    @cached_property
    def _labels(self) -> NDArray[np.int64] | None:
        return None if self.classes is None else self.view.labels(self.classes)

    def __getitem__(self, index: int) -> Any:
        """Return one sample."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return the samples of a batch, read at once. PyTorch's default collate does not copy them again."""
        places = row_numbers(indices)
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
            column = column_of(snapshot, name, rows)
            values[name] = column.tolist() if column.dtype == object else torch.from_numpy(column)
        if self._labels is not None:
            values["label"] = torch.from_numpy(self._labels[places])
        if self._as_mapping:
            return Batch(values, len(places), ragged)
        return Batch(list(values.values()), len(places), [list(values).index(name) for name in ragged])

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the labels. They are derived from the rows again."""
        return {name: value for name, value in self.__dict__.items() if name != "_labels"}

    def __repr__(self) -> str:
        classes = "" if self.classes is None else f", {len(self.classes)} classes"
        return f"<EmbeddingDataset of {len(self):,} samples of {', '.join(self._fields)}{classes}>"

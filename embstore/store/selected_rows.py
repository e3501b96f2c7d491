"""The rows of a view as keys, labels, arrays and tensors. `row_tables` has tables, plots and neighbours."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.arguments import text_list
from embstore._engine.format.keys import UNLABELLED
from embstore._engine.format.ragged import Padded, Ragged
from embstore._engine.format.record import FieldSpec
from embstore._engine.read.column import Rows
from embstore._engine.read.dtypes import as_numbers
from embstore._engine.read.read_rows import column_of, read_field
from embstore._engine.read.snapshot import Snapshot
from embstore._outputs.tensors import field_tensors
from embstore._outputs.vectors import Vectors, class_places
from embstore.errors import ShapeError, StoreChangedError, UnknownClassError
from embstore.store.pool import How, pooled_blocks, pooled_spec
from embstore.store.reader import StoreReader

if TYPE_CHECKING:
    import torch


_NO_LABEL: Final = "'_' stands for rows without a class, which have no label: leave them out with select(classes=…)"


class SelectedRows:
    """The methods of `View` that read its rows as arrays."""

    __slots__ = ("_epoch", "_generation", "rows", "store")

    store: StoreReader

    def __init__(self, store: StoreReader, rows: Rows) -> None:
        rows = np.asarray(rows, dtype=np.int64)
        if rows.flags.writeable:  # the caller may change it
            rows = rows.copy()
            rows.flags.writeable = False
        self.store = store
        self.rows = rows
        record = store.snapshot.record
        self._generation = record.generation
        self._epoch = record.epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys)

    def __repr__(self) -> str:
        names = self.classes
        shown = ", ".join(names[:6]) + (f", … ({len(names)} classes)" if len(names) > 6 else "")
        return f"<View of {len(self):,} of {len(self.store):,} rows of {str(self.store.path)!r}: {shown or 'no rows'}>"

    def _repr_html_(self) -> str:
        return f"<code>{html.escape(repr(self))}</code>"

    def snapshot(self) -> Snapshot:
        """Return the commit of the store, after a check that the row numbers are still valid.

        Raises
        ------
        StoreChangedError
            The store was compacted, or rows of this view were erased.
        """
        snapshot = self.store.snapshot
        record = snapshot.record
        if record.generation != self._generation:
            self._fail("the store was compacted since this view was made", self._generation, record.generation)
        if record.epoch != self._epoch:
            if snapshot.is_dead(self.rows).any():
                self._fail("rows of this view were erased", self._epoch, record.epoch)
            self._epoch = record.epoch
        return snapshot

    def _fail(self, reason: str, expected: object, found: object) -> NoReturn:
        raise StoreChangedError(self.store.path, f"{reason}; select() again", expected=expected, found=found)

    @property
    def keys(self) -> list[str]:
        """The key of each row."""
        return self.snapshot().keys_of(self.rows)

    @property
    def file_ids(self) -> list[str]:
        """The file_id of each row."""
        return self.snapshot().file_ids_of(self.rows)

    @property
    def class_names(self) -> list[str]:
        """The class of each row. Rows without a class have ``_``."""
        return self.snapshot().class_names_of(self.rows)

    @property
    def classes(self) -> list[str]:
        """The classes that occur, each once, in the store's order. Rows without a class add none."""
        return [name for name in class_places(self.snapshot(), self.rows)[0] if name != UNLABELLED]

    def labels(self, classes: Sequence[str]) -> NDArray[np.int64]:
        """Return each row's place in `classes`: ``(len(view),) int64``.

        The list is required, so that labels agree between clients and machines.

        Raises
        ------
        UnknownClassError
            A row's class is not in the list, a row has no class, or the list has ``_``, which is no class.
        ValueError
            A class occurs twice in the list.
        """
        classes = text_list("classes", classes)
        if len(set(classes)) != len(classes):
            raise ValueError(f"a class occurs more than once in {classes!r:.200}")
        places = {name: place for place, name in enumerate(classes)}
        snapshot = self.snapshot()
        if UNLABELLED in places:
            raise UnknownClassError([UNLABELLED], snapshot.classes, hint=_NO_LABEL)
        of_code = np.array([places.get(name, -1) for name in snapshot.class_names], dtype=np.int64)
        codes = snapshot.class_codes_of(self.rows)
        labels = of_code[codes] if len(codes) else np.empty(0, np.int64)
        if len(labels) and labels.min() < 0:
            unknown = [snapshot.class_names[code] for code in np.unique(codes[labels < 0])]
            raise UnknownClassError(unknown, classes, hint=_NO_LABEL if UNLABELLED in unknown else "")
        return labels

    def column(self, name: str) -> np.ndarray[Any, Any]:
        """Return the values of a column: ``(len(view),)`` of its dtype, strings as objects.

        ``"key"``, ``"file_id"`` and ``"class_name"`` are columns, too.

        Raises
        ------
        UnknownColumnError
        """
        return column_of(self.snapshot(), name, self.rows)

    def _read(self, field: str | None) -> tuple[np.ndarray[Any, Any] | Ragged, FieldSpec]:
        snapshot = self.snapshot()
        name = self.store.field_name(field)
        return read_field(snapshot, name, self.rows), snapshot.record.fields[name]

    def to_numpy(self, field: str | None = None) -> Any:
        """Copy the rows to RAM. The copy is writable, and bfloat16 is converted to float32.

        Returns
        -------
        ndarray, (len(view), *shape)
            For a ragged field `Padded`: values ``(len(view), longest, *shape)``, and lengths ``(len(view),) int64``.

        Raises
        ------
        UnknownFieldError, StoreChangedError
        """
        values = as_numbers(*self._read(field))
        return values.padded() if isinstance(values, Ragged) else values

    def pool(self, how: How, field: str | None = None) -> NDArray[Any]:
        """Return the pooled tokens of each row: ``(len(view), *shape)``. They are read a block at a time.

        Parameters
        ----------
        how : {"mean", "max", "cls", "first", "last"}
            "cls" and "first" take the first token. A mean is float32, or float64 of a float64 field.
        field : str, optional
            A ragged field, or one whose rows are ``(tokens, *shape)``. Default: the primary field.

        Raises
        ------
        ShapeError
            The field has no tokens to pool, or some rows have none.
        UnknownFieldError, StoreChangedError
        """
        snapshot, name = self.snapshot(), self.store.field_name(field)
        spec = pooled_spec(name, snapshot.record.fields[name], how)
        empty = np.empty((0, *spec.shape), spec.dtype)
        return np.concatenate([empty, *pooled_blocks(snapshot, name, self.rows, how)])

    def to_ragged(self, field: str | None = None) -> Ragged:
        """Copy the rows of a ragged field to RAM without padding. bfloat16 is converted to float32.

        Raises
        ------
        ShapeError
            The field is not ragged.
        UnknownFieldError, StoreChangedError
        """
        values = as_numbers(*self._read(field))
        if not isinstance(values, Ragged):
            raise ShapeError(self.store.field_name(field), expected="a ragged field", found="rows of one shape")
        return values

    def _plain_field(self) -> str:
        name = self.store.field_name()
        if self.store.fields[name].ragged:
            raise ShapeError(name, expected="rows of one shape", found="a ragged field: use view.to_ragged()")
        return name

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array that ``numpy.asarray(view)`` returns: ``(len(view), *shape)``.

        Raises
        ------
        ShapeError
            The field is ragged.
        """
        return (len(self), *self.store.fields[self._plain_field()].shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        """Return the values of `to_numpy` for ``numpy.asarray(view)`` and functions that take arrays.

        Raises
        ------
        ShapeError
            The field is ragged. `to_ragged` and `to_numpy` return its rows.
        ValueError
            `copy` is False: the rows are always copied.
        """
        if copy is False:
            raise ValueError("the rows of a view are always copied: pass copy=None, or use store.array()")
        values: np.ndarray[Any, Any] = self.to_numpy(self._plain_field())
        return values if dtype is None else values.astype(dtype, copy=False)

    def __dlpack__(self, **options: Any) -> Any:
        """Return the values of `to_numpy` as a DLPack capsule, for ``torch.as_tensor(view)`` and others.

        Raises
        ------
        ShapeError
            The field is ragged.
        BufferError
            `copy` is False: the rows are always copied.
        """
        if options.pop("copy", None) is False:
            raise BufferError("the rows of a view are always copied: pass copy=None, or use store.tensor()")
        return self.__array__().__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return the CPU as a DLPack device."""
        return (1, 0)

    def to_torch(self, field: str | None = None, *, device: Any = None, dtype: torch.dtype | None = None) -> Any:
        """Copy the rows to a new tensor ``(len(view), *shape)``. Rows of a ragged field become `Padded` tensors.

        Parameters
        ----------
        field : str, optional
            Default: the primary field.
        device : str or torch.device, optional
        dtype : torch.dtype, optional
            Default: the stored dtype.

        Raises
        ------
        UnknownFieldError, StoreChangedError, MissingLibraryError
        """
        rows, lengths = field_tensors(self.snapshot(), self.store.field_name(field), self.rows)
        rows = rows.to(device=device, dtype=dtype)
        return rows if lengths is None else Padded(rows, lengths.to(device=device))

    def vectors(self, field: str | None = None) -> Vectors:
        """Return the rows as flat vectors ``(len(view), dim)``, which are read a block at a time.

        Raises
        ------
        ShapeError
            The field is ragged.
        """
        return Vectors(snapshot=self.snapshot(), field=self.store.field_name(field), rows=self.rows)

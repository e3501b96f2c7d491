"""The rows of a view as arrays, tensors, tables, neighbours and plots. `embedding_store.View` selects rows."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.arguments import text_list
from embstore._engine.format.ragged import Padded, Ragged
from embstore._engine.format.record import FieldSpec
from embstore._engine.io.remote import local_path
from embstore._engine.lazy import imported
from embstore._engine.read.column import Rows
from embstore._engine.read.dtypes import as_numbers
from embstore._engine.read.read_rows import column_of, read_field
from embstore._engine.read.snapshot import Snapshot
from embstore._engine.rng import Rng, generator_of
from embstore._outputs.neighbors import Metric, Neighbors, neighbors_of
from embstore._outputs.tensors import field_tensors
from embstore._outputs.vectors import Vectors, class_places
from embstore.errors import ShapeError, StoreChangedError, UnknownClassError
from embstore.store.reader import StoreReader

if TYPE_CHECKING:
    import pandas as pd
    import torch
    import xarray as xr

    from embstore._outputs.projection import Method


class SelectedRows:
    """The methods of `View` that read its rows."""

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
        """The class of each row."""
        return self.snapshot().class_names_of(self.rows)

    @property
    def classes(self) -> list[str]:
        """The classes that occur, each once, in the store's order."""
        return class_places(self.snapshot(), self.rows)[0]

    def labels(self, classes: Sequence[str]) -> NDArray[np.int64]:
        """Return each row's place in `classes`: ``(len(view),) int64``.

        The list is required, so that labels agree between clients and machines.

        Raises
        ------
        UnknownClassError
            A row's class is not in the list.
        ValueError
            A class occurs twice in the list.
        """
        classes = text_list("classes", classes)
        if len(set(classes)) != len(classes):
            raise ValueError(f"a class occurs more than once in {classes!r:.200}")
        places = {name: place for place, name in enumerate(classes)}
        snapshot = self.snapshot()
        of_code = np.array([places.get(name, -1) for name in snapshot.class_names], dtype=np.int64)
        codes = snapshot.class_codes_of(self.rows)
        labels = of_code[codes] if len(codes) else np.empty(0, np.int64)
        if len(labels) and labels.min() < 0:
            raise UnknownClassError([snapshot.class_names[code] for code in np.unique(codes[labels < 0])], classes)
        return labels

    def column(self, name: str) -> np.ndarray[Any, Any]:
        """Return the values of a column: ``(len(view),)`` of its dtype, strings as objects.

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

    def to_torch(self, field: str | None = None, *, device: Any = None, dtype: torch.dtype | None = None) -> Any:
        """Copy the rows to a new tensor ``(len(view), *shape)``. Rows of a ragged field become `Padded` tensors.

        Parameters
        ----------
        field : str, optional
            Default: the only field.
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

    def to_pandas(
        self, fields: Sequence[str] | str | None = None, *, index: Literal["key", "file_id"] = "key"
    ) -> pd.DataFrame:
        """Return keys, file_ids, classes and columns as a DataFrame.

        Parameters
        ----------
        fields : sequence of str, optional
            Fields to add, one array in each cell. By default no vectors are read.
        index : {"key", "file_id"}
            ``view.to_pandas(index="file_id").join(metadata)`` joins a table that has one row for each file.

        Raises
        ------
        UnknownFieldError, StoreChangedError, MissingLibraryError
        """
        from embstore._outputs.pandas_parquet import as_frame

        return as_frame(
            self.snapshot(), self.rows, fields=self._field_names([] if fields is None else fields), index=index
        )

    def to_xarray(self, fields: Sequence[str] | str | None = None) -> xr.Dataset:
        """Return a Dataset that reads values only when they are used.

        Parameters
        ----------
        fields : sequence of str, optional
            Default: all fields.

        Returns
        -------
        Dataset
            One variable ``(sample, *dims)`` for each field. key, file_id, class_name and the columns are coordinates
            along ``sample``. bfloat16 is converted to float32. A ragged field is padded with zeros to the longest row
            of the view, ``(sample, <field>_token, *dims)``, and has the coordinate ``<field>_length``. To select by
            key, use ``.set_xindex("key").sel(key=…)``, which reads the keys.

        Raises
        ------
        UnknownFieldError, MissingLibraryError
        ValueError
            Two variables have one name, or a variable is named like a dimension. Leave that field out.
        """
        imported("xarray", "analysis", "for a Dataset")
        from embstore._outputs.xarray_dataset import as_dataset

        names = list(self.store.fields) if fields is None else self._field_names(fields)
        return as_dataset(self.snapshot, self.rows, names)

    def to_parquet(
        self,
        file: str | PathLike[str],
        *,
        field: str | None = None,
        projection: Method | NDArray[np.floating[Any]] | None = None,
        rng: Rng | None = None,
    ) -> Path:
        """Write keys, columns and vectors to a Parquet file, a row group at a time.

        ``embedding-atlas FILE --vector vector --x x --y y`` shows the file. See `embstore.analysis.explore`.

        Parameters
        ----------
        file : path
            An existing file is replaced.
        field : str, optional
            Becomes the column ``vector``: each row flattened, as a list of float32.
        projection : {"pca", "umap"} or ndarray, (len(view), 2), optional
            Becomes the columns ``x`` and ``y``.
        rng : int or numpy.random.Generator, optional
            For a projection that needs it. Default: seed 0.

        Returns
        -------
        Path
            The path of the file.

        Raises
        ------
        ShapeError, NameRefusedError, MissingLibraryError, ReadOnlyError
        """
        from embstore._outputs.pandas_parquet import write_parquet
        from embstore._outputs.projection import project_vectors

        path, vectors = local_path(file), self.vectors(field)
        if isinstance(projection, str):
            projection = project_vectors(vectors, projection, 2, generator_of(0 if rng is None else rng)).points
        write_parquet(path, vectors, None if projection is None else np.asarray(projection, dtype=np.float32))
        return path

    def plot(
        self,
        file: str | PathLike[str] | None = None,
        *,
        field: str | None = None,
        color: str | None = "class_name",
        method: Method = "pca",
        max_points: int = 100_000,
        rng: Rng | None = None,
    ) -> Any:
        """Plot the rows in two dimensions, one point for each row.

        Parameters
        ----------
        file : path, optional
            ``.html`` for a page that needs no network and shows the key and columns under the pointer. ``.png``,
            ``.svg`` or ``.pdf`` for a picture. An existing file is replaced.
        field : str, optional
        color : str, optional
            ``"class_name"``, a column, or None.
        method : {"pca", "umap"}
        max_points : int
            Of a larger view so many random rows are drawn, and the title says so.
        rng : int or numpy.random.Generator, optional
            Default: seed 0.

        Returns
        -------
        Path or plotly.graph_objects.Figure
            The path of the file. Without `file`, the figure.

        Raises
        ------
        EmptyViewError, UnknownColumnError, ShapeError, NonFiniteError, MissingLibraryError, ReadOnlyError
        ValueError
            The file has another suffix.
        """
        from embstore._outputs.plot import plot_vectors

        return plot_vectors(
            self.vectors(field),
            None if file is None else local_path(file),
            color=color,
            method=method,
            max_points=max_points,
            rng=generator_of(0 if rng is None else rng),
        )

    def _field_names(self, fields: Sequence[str] | str) -> list[str]:
        return [self.store.field_name(name) for name in text_list("fields", fields)]

    def vectors(self, field: str | None = None) -> Vectors:
        """Return the rows as flat vectors ``(len(view), dim)``, which are read a block at a time.

        Raises
        ------
        ShapeError
            The field is ragged.
        """
        return Vectors(snapshot=self.snapshot(), field=self.store.field_name(field), rows=self.rows)

    def nearest(
        self,
        query: Any,
        k: int = 5,
        *,
        field: str | None = None,
        metric: Metric = "cosine",
        itself: Literal["exclude", "include"] = "exclude",
    ) -> Neighbors:
        """Find the rows nearest to one or many queries. The search is exact, and reads a block at a time.

        Parameters
        ----------
        query : array_like, (dim,) or (n, dim), or str, Key or list of these
            Vectors, or keys of the store, whose vectors are looked up. The keys need not be in the view.
        k : int
            The number of neighbours. A smaller view returns all its rows.
        field : str, optional
            Its rows are flattened.
        metric : {"cosine", "dot", "euclidean"}
        itself : {"exclude", "include"}
            Whether the row of a query key may be among its own neighbours.

        Returns
        -------
        Neighbors
            `keys`, `scores` and `rows`, the nearest first: of length k for one query, ``(n, k)`` for many.
            `Neighbors.to_pandas` returns a table.

        Raises
        ------
        ShapeError, NonFiniteError, MissingKeysError, UnknownFieldError
        """
        return neighbors_of(self.vectors(field), query, k, metric=metric, itself=itself, rows_of=self.store.rows_of)

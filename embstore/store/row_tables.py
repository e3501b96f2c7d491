"""The rows of a view as tables, plots and neighbours. `selected_rows` has arrays and tensors."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.arguments import check_choice, text_list
from embstore._engine.format.source_columns import SOURCE_COLUMNS
from embstore._engine.io.urls import local_path
from embstore._engine.lazy import imported
from embstore._engine.rng import Rng, generator_of
from embstore._outputs.neighbors import Metric, Neighbors, neighbors_of
from embstore.errors import MissingKeysError, UnknownColumnError
from embstore.store.selected_rows import SelectedRows
from embstore.store.text_query import text_vectors

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from embstore._outputs.projection import Method
    from embstore.encoders.base import Encoder


class RowTables(SelectedRows):
    """The methods of `View` that return its rows as tables, plots and neighbours."""

    __slots__ = ()

    def to_pandas(
        self,
        fields: Sequence[str] | str | None = None,
        *,
        index: Literal["key", "file_id"] = "key",
        columns: Sequence[str] | str | None = None,
    ) -> pd.DataFrame:
        """Return keys, file_ids, classes and columns as a DataFrame.

        Parameters
        ----------
        fields : sequence of str, optional
            Fields to add, one array in each cell. By default no vectors are read.
        index : {"key", "file_id"}
            ``view.to_pandas(index="file_id").join(metadata)`` joins a table that has one row for each file.
        columns : sequence of str, optional
            Default: all but those in which `embed` notes the content of rows (``source_digest`` and others).

        Raises
        ------
        UnknownFieldError, UnknownColumnError, StoreChangedError, MissingLibraryError
        """
        from embstore._outputs.pandas_parquet import as_frame

        return as_frame(
            self.snapshot(),
            self.rows,
            columns=self._column_names(columns),
            fields=self._field_names([] if fields is None else fields),
            index=index,
        )

    def to_xarray(
        self,
        fields: Sequence[str] | str | None = None,
        *,
        index: Literal["key", "file_id"] | None = None,
        columns: Sequence[str] | str | None = None,
    ) -> xr.Dataset:
        """Return a Dataset that reads values only when they are used.

        Parameters
        ----------
        fields : sequence of str, optional
            Default: all fields.
        index : {"key", "file_id"}, optional
            Labels of the dimension ``sample``, for ``dataset.sel(sample="dog/1:dog")``. They are read at once.
        columns : sequence of str, optional
            As for `to_pandas`.

        Returns
        -------
        Dataset
            One variable ``(sample, *dims)`` for each field. key, file_id, class_name and the columns are coordinates
            along ``sample``. bfloat16 is converted to float32. A ragged field is padded with zeros to the longest row
            of the view, ``(sample, <field>_token, *dims)``, and has the coordinate ``<field>_length``.

        Raises
        ------
        UnknownFieldError, UnknownColumnError, MissingLibraryError
        ValueError
            Two variables have one name, or a variable is named like a dimension. Leave that field out.
        """
        imported("xarray", "analysis", "for a Dataset")
        from embstore._outputs.xarray_dataset import as_dataset

        names = list(self.store.fields) if fields is None else self._field_names(fields)
        check_choice("index", index, ("key", "file_id", None))
        return as_dataset(self.snapshot, self.rows, names, self._column_names(columns), index)

    def to_parquet(
        self,
        file: str | PathLike[str],
        *,
        field: str | None = None,
        columns: Sequence[str] | str | None = None,
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
        columns : sequence of str, optional
            As for `to_pandas`.
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
        ShapeError, UnknownColumnError, NameRefusedError, MissingLibraryError, ReadOnlyError
        """
        from embstore._outputs.pandas_parquet import write_parquet
        from embstore._outputs.projection import project_vectors

        path, vectors = local_path(file), self.vectors(field)
        if isinstance(projection, str):
            projection = project_vectors(vectors, projection, 2, generator_of(0 if rng is None else rng)).points
        points = None if projection is None else np.asarray(projection, dtype=np.float32)
        write_parquet(path, vectors, self._column_names(columns), points)
        return path

    def plot(
        self,
        file: str | PathLike[str] | None = None,
        *,
        field: str | None = None,
        color: str | None = "class_name",
        columns: Sequence[str] | str | None = None,
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
        columns : sequence of str, optional
            Columns under the pointer. Default: as for `to_pandas`.
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
            columns=self._column_names(columns),
            method=method,
            max_points=max_points,
            rng=generator_of(0 if rng is None else rng),
        )

    def nearest(
        self,
        query: Any = None,
        k: int = 5,
        *,
        text: str | Sequence[str] | None = None,
        encoder: Encoder | None = None,
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
        text : str or list of str, optional
            Texts in place of `query`, which `encoder` encodes: ``view.nearest(text="a dog", encoder=encoder)``.
        encoder : Encoder, optional
            The encoder of the rows. For images and sound, the text tower of the same model.
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
        ModalityError
            The encoder does not take texts.
        ConfigMismatchError, FieldMismatchError
            The encoder has another model than the one that made the rows, or gives another output of it.
        """
        if (query is None) == (text is None) or (text is None) != (encoder is None):
            raise TypeError("expected a query, or text= with encoder=; for other samples pass the vectors encoder([…])")
        if text is not None and encoder is not None:
            query = text_vectors(self.store, text, encoder, self.store.field_name(field))
        try:
            return neighbors_of(self.vectors(field), query, k, metric=metric, itself=itself, rows_of=self.store.rows_of)
        except MissingKeysError as error:
            error.add_note("a query of text is a key: to search by a text, pass text= and encoder=")
            raise

    def _field_names(self, fields: Sequence[str] | str) -> list[str]:
        return [self.store.field_name(name) for name in text_list("fields", fields)]

    def _column_names(self, columns: Sequence[str] | str | None) -> list[str]:
        """Return the given columns, or by default all that `embed` does not keep for itself."""
        known = self.snapshot().record.columns
        if columns is None:
            return [name for name in known if name not in SOURCE_COLUMNS]
        names = text_list("columns", columns)
        for name in names:
            if name not in known:
                raise UnknownColumnError(name, known, path=self.store.path)
        return names

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """Return the rows as an Arrow stream (the PyCapsule interface of Arrow): ``polars.DataFrame(view)``.

        The stream has keys, file_ids, classes, the columns that `to_pandas` has, and all fields that are not ragged, as
        ``fixed_shape_tensor``. Neighbouring rows of mapped fields are not copied. bfloat16 and float16 are converted to
        float32, and copied. Batches are read when the consumer asks for them. An error of a later batch reaches
        it as an error of its own, with the same text.

        Raises
        ------
        StoreChangedError, MissingLibraryError
        """
        from embstore._outputs.arrow import record_batches

        fields = [name for name, spec in self.snapshot().record.fields.items() if not spec.ragged]
        reader = record_batches(self.snapshot, self.rows, fields, self._column_names(None))
        return reader.__arrow_c_stream__(requested_schema)

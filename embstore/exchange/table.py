"""Table: the keys, fields and columns that the arrays of a file make, read in blocks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embstore._engine.format.ragged import Ragged
from embstore._engine.format.record import BFLOAT16, STRING, FieldSpec
from embstore.errors import FileFormatError
from embstore.exchange.file_contents import Array, ArrayFile, Block, is_text, of_width
from embstore.exchange.import_options import ImportOptions
from embstore.exchange.naming import RowName, row_name
from embstore.exchange.scalars import text_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The rows of a file, in one order for keys, fields and columns.

    Attributes
    ----------
    file : ArrayFile
    options : ImportOptions
    fields : dict of str to FieldSpec
        As the file has them.
    sources : dict of str to str
        The name of each field in the file.
    columns : dict of str to str
        Their dtypes.
    names : str
        The array of keys or file_ids.
    labels : str or None
        The array of classes.
    """

    file: ArrayFile
    options: ImportOptions
    fields: dict[str, FieldSpec]
    sources: dict[str, str]
    columns: dict[str, str]
    names: str
    labels: str | None

    @property
    def path(self) -> Path:
        """The path of the file."""
        return self.file.path

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.file.arrays[self.names].rows

    def row_names(self) -> Iterator[list[RowName]]:
        """Yield the names and keys of the rows.

        Raises
        ------
        FileFormatError
            A name can be read in several ways.
        """
        labels: Iterator[Any] = itertools.repeat(None)
        if self.labels is not None:
            labels = map(text_of, itertools.chain.from_iterable(self._texts(self.labels)))
        for block in self._texts(self.names):
            pairs = zip(block, labels, strict=False)
            try:
                yield [row_name(found, label, self.options, self.path) for found, label in pairs]
            except FileFormatError as error:
                raise self.file.wrong(error.reason + self._without_colon()) from None

    def _without_colon(self) -> str:
        """Return a sentence about a name without a colon, if the file has one beside those with a colon."""
        names = itertools.chain.from_iterable(self._texts(self.names))
        bare = next((name for name in names if isinstance(name, str) and ":" not in name), None)
        return "" if bare is None else f". The file also has names without a colon, such as {bare!r}"

    def _texts(self, name: str) -> Iterator[list[Any]]:
        """Yield names or classes: numbers as text, None for a missing one."""
        if is_text(self.file.arrays[name]):
            yield from self.file.strings(name)
            return
        for block in self.file.numbers(name):
            values = np.asarray(block.values).tolist()
            yield [None if place in block.bad else text_of(value) for place, value in enumerate(values)]

    def field(self, name: str) -> Iterator[Block]:
        """Yield the rows of a field: bfloat16 as its bits, ragged ones as `Ragged`."""
        source, spec = self.sources[name], self.fields[name]
        lists = self.file.arrays[source].ragged
        for block in self.file.ragged(source) if lists else self.file.numbers(source):
            if isinstance(block.values, Ragged) and not spec.ragged:
                block = of_width(block, spec.shape[0])
            values = block.values
            if isinstance(values, Ragged):
                yield Block(Ragged(_as_stored(values.values, spec), values.offsets), block.bad)
            else:
                yield Block(_as_stored(values, spec), block.bad)

    def column(self, name: str) -> Iterator[Array | list[str]]:
        """Yield the values of a column. A missing text is empty, a missing float is NaN.

        Raises
        ------
        FileFormatError
            A value of another dtype is missing.
        """
        if self.columns[name] == STRING:
            for texts in self.file.strings(name):
                yield ["" if text is None else text for text in texts]
            return
        for block in self.file.numbers(name):
            values = np.asarray(block.values)
            if block.bad:
                if values.dtype.kind != "f":
                    raise self.file.wrong(f"{name!r}: some of its values are missing")
                values = np.array(values)
                values[list(block.bad)] = np.nan
            yield values


def _as_stored(values: Any, spec: FieldSpec) -> Array:
    """Return rows in the field's shape. bfloat16 of NumPy (an extension type of others) becomes its bits."""
    array = np.ascontiguousarray(values)
    return (array.view(np.uint16) if array.dtype.name == BFLOAT16 else array).reshape(-1, *spec.shape)

"""Folders of numbered ``.npy`` files: beside Parquet files of as many rows, or a folder a class with a manifest.

`read_table` reads both. The first is the layout of clip-retrieval and LAION: ``img_emb/img_emb_0.npy``,
``text_emb/text_emb_0.npy`` and ``metadata/metadata_0.parquet``, or the same files in one folder. Each name is a field,
each column of the Parquet files a column. The second is the cache of the A2V code from 29 January 2026 on:
``dog/manifest.json`` names ``dog/embeddings_000.npy``, …, and the chunk and row of each file_id.

Rows stay mapped from their files until they are written.
Source: https://github.com/rom1504/clip-retrieval#clip-inference
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from embstore.errors import FileFormatError
from embstore.exchange import parquet
from embstore.exchange.file_contents import Array, ArrayFile, ArrayInfo, Block, Unreadable, even_cuts, explained
from embstore.exchange.import_options import ImportOptions
from embstore.exchange.interpret import table_of
from embstore.exchange.memory_file import KEYS, LABELS
from embstore.exchange.pt_entries import entries_file
from embstore.exchange.table import Table

MANIFEST: Final = "manifest.json"
_NUMBERED: Final = re.compile(r"(?P<name>.+?)[-_.]?(?P<number>\d*)\.(?P<suffix>npy|parquet)")
_PATHS: Final = "image_path"
"""Column of the ids that clip-retrieval writes."""


def read_table(path: Path, options: ImportOptions) -> Table:
    """Return the rows of a folder.

    Raises
    ------
    FileFormatError, MissingLibraryError, UnknownFieldError, UnknownColumnError
    """
    if any(path.glob(f"*/{MANIFEST}")):
        entries, unreadable = {}, []
        for file_id, class_name, row in manifest_rows(path):
            if isinstance(row, Unreadable):
                unreadable.append(row)
            else:
                entries[f"{file_id}:{class_name}"] = {"embedding": row, LABELS: class_name}
        options = replace(options, keys="file_id:class")
        made = entries_file(path, entries, options)
        made.unreadable += unreadable
        return table_of(made, options)
    file = File(path)
    if options.key_column is None and _PATHS in file.arrays and not any(name in file.arrays for name in KEYS):
        options = replace(options, key_column=_PATHS, keys=options.keys or "file_id")
    return table_of(file, options)


def manifest_rows(folder: Path) -> Iterator[tuple[str, str, Array | Unreadable]]:
    """Yield the file_id, the class (the name of its folder) and the mapped row of all entries of all manifests.

    A row that is missing is `Unreadable`.

    Raises
    ------
    FileFormatError
        The folder has no manifest, or one is broken.
    """
    manifests = sorted(folder.glob(f"*/{MANIFEST}"))
    if not manifests:
        raise FileFormatError(folder, f"expected a folder with {MANIFEST} for each class, found none")
    for path in manifests:
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            files = [str(chunk["file"]) for chunk in manifest["chunks"]]
            index = {str(name): (int(chunk), int(row)) for name, (chunk, row) in manifest["file_id_to_index"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"expected a manifest of chunks, found {type(error).__name__}: {error}"
            raise FileFormatError(path, reason) from error
        chunks = [_chunk(path.parent, name) for name in files]
        class_name = path.parent.name
        for file_id, (chunk, row) in index.items():
            rows = chunks[chunk] if 0 <= chunk < len(chunks) else None
            if rows is None or not 0 <= row < len(rows):
                reason = f"{path} names row {row} of chunk {chunk}, which is not there"
                yield file_id, class_name, Unreadable(f"{file_id}:{class_name}", reason)
            else:
                yield file_id, class_name, rows[row]


def _chunk(folder: Path, name: str) -> Array | None:
    """Return a mapped chunk, or None if it is missing, broken or outside the folder."""
    if Path(name).name != name:
        return None
    try:
        found: Array = np.load(folder / name, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return None
    return found if found.ndim else None


class File(ArrayFile):
    """Numbered arrays and tables of as many rows, read one after the other as one file.

    Raises
    ------
    FileFormatError
        A part is missing or broken, or its files have different numbers of rows.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        found: dict[str, dict[int, Path]] = {}
        for one in sorted(itertools.chain(path.glob("*"), path.glob("*/*"))):
            named = _NUMBERED.fullmatch(one.name)
            if one.is_dir():
                continue
            if named is None:
                self.left_out.append(Unreadable(str(one.relative_to(path)), "it is neither .npy nor .parquet"))
                continue
            name = "" if named["suffix"] == "parquet" else named["name"]
            parts, number = found.setdefault(name, {}), int(named["number"] or -1)
            if number in parts:
                raise self.wrong(f"{one.relative_to(path)} and {parts[number].relative_to(path)} have one number")
            parts[number] = one
        tables = found.pop("", {})
        for name, parts in found.items():
            if odd := parts.keys() ^ tables.keys():
                raise self.wrong(f"expected an .npy of {name!r} and a .parquet of each number, {min(odd)} has one only")
        self._tables = [parquet.File(tables[number]) for number in sorted(tables)]
        self._arrays = {
            name: [self._mapped(parts[number]) for number in sorted(parts)] for name, parts in found.items()
        }
        for name in self._tables[0].arrays if self._tables else ():
            self._join(name, [table.arrays.get(name) for table in self._tables])
        for name, arrays in self._arrays.items():
            kinds = [(array.dtype.newbyteorder("=").name, array.shape) for array in arrays]
            self._join(name, [ArrayInfo(dtype=dtype, shape=shape[1:], rows=shape[0]) for dtype, shape in kinds])
        self._check_rows(sorted(tables))
        for table in self._tables:
            self.left_out += table.left_out

    def _mapped(self, path: Path) -> Array:
        with explained(path):
            found: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not found.ndim:
            raise FileFormatError(path, "it is a single value")
        return found

    def _join(self, name: str, parts: Sequence[ArrayInfo | None]) -> None:
        """Describe the array that parts make together."""
        first = parts[0]
        kinds = {one and replace(one, rows=0) for one in parts}
        if name in self.arrays or first is None or len(kinds) > 1:
            self.left_out.append(Unreadable(name, f"its parts differ: {', '.join(dict.fromkeys(map(str, parts)))}"))
        else:
            self.arrays[name] = replace(first, rows=sum(one.rows for one in parts if one is not None))

    def _check_rows(self, numbers: Sequence[int]) -> None:
        """Raise FileFormatError unless the files of each number have as many rows."""
        for place, number in enumerate(numbers):
            table = self._tables[place]
            rows = next((found.rows for found in table.arrays.values()), 0)
            for name, arrays in self._arrays.items():
                if len(arrays[place]) != rows:
                    raise self.wrong(f"{name!r} has {len(arrays[place]):,} rows in part {number}, its table {rows:,}")

    def check_size(self) -> None:
        """Check the sizes that the tables claim. Mapped arrays are as large as they claim."""
        for table in self._tables:
            table.check_size()

    def numbers(self, name: str) -> Iterator[Block]:
        """Yield rows of numbers: ``(n, *shape)``. Numbers of tables may be missing."""
        if name not in self._arrays:
            yield from itertools.chain.from_iterable(table.numbers(name) for table in self._tables)
            return
        for array in self._arrays[name]:
            for start, stop in itertools.pairwise(even_cuts(len(array), self.arrays[name].row_nbytes)):
                yield Block(np.ascontiguousarray(array[start:stop], array.dtype.newbyteorder("=")))

    def strings(self, name: str) -> Iterator[list[Any]]:
        """Yield rows of text. A missing text is None."""
        yield from itertools.chain.from_iterable(table.strings(name) for table in self._tables)

    def ragged(self, name: str) -> Iterator[Block]:
        """Yield rows of different lengths, as `Ragged`."""
        yield from itertools.chain.from_iterable(table.ragged(name) for table in self._tables)

    def close(self) -> None:
        """Close the tables."""
        with contextlib.ExitStack() as stack:
            for table in self._tables:
                stack.callback(table.close)

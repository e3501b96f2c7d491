"""Arrays of a file, read in blocks, and errors for broken files: the same for all formats.

The module of a format has `File`, a subclass of `ArrayFile`, and the function `write`. `interpret` finds the meaning of
the arrays, `importing` writes them to a store.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import itertools
import math
import os
import pickle
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.config import Config
from embstore._engine.format.ragged import Ragged, offsets_message, sound
from embstore._engine.format.record import FIELD_DTYPES, STRING, offsets_name, stored_dtype
from embstore._engine.pickles import PickledByName
from embstore._engine.write.check_input import Stored
from embstore.errors import EmbstoreError, FileFormatError, UnknownFormatError
from embstore.exchange.store_metadata import StoreMetadata

Array = np.ndarray[Any, Any]

_SUFFIXES: Final = {
    ".pt": "pt",
    ".pth": "pt",
    ".npz": "npz",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".safetensors": "safetensors",
    ".parquet": "parquet",
}
FORMATS: Final = tuple(dict.fromkeys(_SUFFIXES.values()))

BLOCK_BYTES: Final = 32 * 2**20
BLOCK_ROWS: Final = 65_536
_MOST_PACKED: Final = 2000
"""Most bytes of values for one byte of a file: deflate expands one byte to at most 1,032."""
_SMALL: Final = 256 * 2**20
_BROKEN: Final[tuple[type[Exception], ...]] = (
    *(AssertionError, AttributeError, EOFError, ImportError, LookupError, MemoryError, OSError, OverflowError),
    *(RuntimeError, SyntaxError, TypeError, ValueError),
    *(pickle.UnpicklingError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
"""Errors that h5py, NumPy, pyarrow, safetensors, torch and zipfile were seen to raise over broken files."""


@dataclass(frozen=True, slots=True)
class Unreadable(PickledByName):
    """An entry or array of a file that was not imported: its key (or name) as found, and the reason.

    Attributes
    ----------
    key : object
    reason : str
    """

    key: object
    reason: str

    def __str__(self) -> str:
        return f"{self.key if isinstance(self.key, str) else repr(self.key)}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayInfo:
    """The description of an array in its file.

    Attributes
    ----------
    dtype : str
        A NumPy name, ``"bfloat16"`` or ``"string"``. An array of any other dtype can't be read.
    shape : tuple of int
        Shape of a row, or of a token in a ragged array.
    rows : int
    ragged : bool
        True if each row has its own length.
    text_nbytes : int
        Estimated size of a text, in bytes.
    nullable : bool
        True if the format can mark single values as missing.
    """

    dtype: str
    shape: tuple[int, ...]
    rows: int
    ragged: bool = False
    text_nbytes: int = 512
    nullable: bool = False

    @property
    def row_nbytes(self) -> int:
        """Size of a row of numbers or texts, in bytes."""
        if self.dtype == STRING:
            return self.text_nbytes
        return math.prod(self.shape) * np.dtype(stored_dtype(self.dtype)).itemsize

    def __str__(self) -> str:
        return f"{self.dtype} {(self.rows, *(['length'] if self.ragged else []), *self.shape)}".replace("'", "")


def is_text(found: ArrayInfo) -> bool:
    """Return True if an array holds texts, or lists of UTF-8 bytes."""
    return not found.shape and (found.dtype == STRING or (found.ragged and found.dtype == "uint8"))


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of a field, and the reason for each of them (by its place in the block) that can't be used."""

    values: Stored
    bad: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)


def of_width(block: Block, width: int) -> Block:
    """Return lists as rows of one length. Lists of another length are bad rows."""
    rows = block.values
    assert isinstance(rows, Ragged)
    fits = rows.lengths == width
    values = np.zeros((len(rows), width, *rows.values.shape[1:]), rows.values.dtype)
    values[fits] = rows.values[np.repeat(fits, rows.lengths)].reshape(-1, *values.shape[1:])
    reason = "it has {} numbers, expected {}; ragged=True takes all lengths"
    wrong = {int(i): reason.format(rows.lengths[i], width) for i in np.flatnonzero(~fits)}
    return Block(values, {**wrong, **block.bad})


class ArrayFile:
    """A file of named arrays.

    A subclass has `read`. One whose format has lists overrides `numbers`, `strings` and `ragged` instead. Exports to
    formats without lists have ragged rows as two arrays, tokens and offsets, as a store does. So are texts, where the
    format would change or pad them: UTF-8 bytes and offsets.

    A subclass notes all that it does not read in `left_out`: nothing of a file is skipped in silence.

    Attributes
    ----------
    path : Path
    metadata : StoreMetadata or None
        Of a file that `export_file` wrote.
    config : Config or None
        As the file states it.
    arrays : dict of str to ArrayInfo
    ids : dict of str to str
        Ids that the file states beside arrays, by the names of the arrays.
    unreadable : list of Unreadable
        Entries that are not among the rows.
    left_out : list of Unreadable
        Parts of the file that are neither field nor column, and metadata that a config can't hold.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: StoreMetadata | None = None
        self.config: Config | None = None
        self.arrays: dict[str, ArrayInfo] = {}
        self.ids: dict[str, str] = {}
        self.unreadable: list[Unreadable] = []
        self.left_out: list[Unreadable] = []
        self._tokens: dict[str, int] = {}  # number of tokens of arrays joined with their offsets

    def read(self, name: str, cuts: Sequence[int]) -> Iterator[Array | list[str]]:
        """Yield the rows between each cut (a row number) and the next."""
        raise NotImplementedError

    def state(self, metadata: str) -> None:
        """Take the metadata of an export.

        Raises
        ------
        FileFormatError
        """
        self.metadata = StoreMetadata.parse(metadata, self.path)
        self.config = self.metadata.config

    def numbers(self, name: str) -> Iterator[Block]:
        """Yield rows of numbers: ``(n, *shape)``."""
        found = self.arrays[name]
        for values in self.read(name, even_cuts(found.rows, found.row_nbytes)):
            yield Block(np.asarray(values))

    def strings(self, name: str) -> Iterator[list[Any]]:
        """Yield rows of text. A missing text is None."""
        found = self.arrays[name]
        if found.dtype == STRING:
            for values in self.read(name, even_cuts(found.rows, found.row_nbytes)):
                yield list(values)
            return
        for block in self.ragged(name):
            assert isinstance(block.values, Ragged)
            raw, offsets = block.values.values.tobytes(), block.values.offsets.tolist()
            try:
                yield [raw[a:b].decode() for a, b in itertools.pairwise(offsets)]
            except UnicodeDecodeError as error:
                raise self.wrong(f"{name!r} is not UTF-8 text: {error}") from error

    def join_offsets(self, name: str) -> None:
        """Turn an array of tokens and its array of offsets into one ragged array."""
        values, offsets = self.arrays.get(name), self.arrays.get(offsets_name(name))
        if values is None or offsets is None:
            return
        if offsets.dtype != "int64" or offsets.shape or not offsets.rows:
            raise self.wrong(f"{offsets_name(name)!r}: expected offsets, found {offsets}")
        self._tokens[name] = values.rows
        self.arrays[name] = replace(values, rows=offsets.rows - 1, ragged=True)

    def ragged(self, name: str) -> Iterator[Block]:
        """Yield rows of different lengths, as `Ragged`."""
        tokens, array, other = self._tokens[name], self.arrays[name], offsets_name(name)
        parts = [np.asarray(part) for part in self.read(other, even_cuts(self.arrays[other].rows, 8))]
        offsets = np.concatenate([np.empty(0, np.int64), *parts])
        if not sound(offsets, tokens):
            raise self.wrong(f"{name!r}: {offsets_message(tokens)}")
        rows = rising_cuts(offsets, array.row_nbytes)
        values = self.read(name, [int(offsets[row]) for row in rows])
        for start, stop, part in zip(rows, rows[1:], values, strict=False):
            yield Block(Ragged(part, offsets[start : stop + 1] - offsets[start]))

    def close(self) -> None:
        """Close the file."""

    def check_size(self) -> None:
        """Refuse a file that claims more values than its size allows: a bomb, or a broken header.

        Raises
        ------
        FileFormatError
        """
        known = [found for found in self.arrays.values() if found.dtype in FIELD_DTYPES]
        claimed = sum(found.rows * found.row_nbytes for found in known)
        claimed = max(claimed, *(found.rows for found in self.arrays.values()), 0)
        check_claim(self.path, claimed)

    def wrong(self, reason: str) -> FileFormatError:
        """Return an error for this file."""
        return FileFormatError(self.path, reason)


def check_claim(path: Path, claimed: int) -> None:
    """Refuse a file that claims more bytes than its size allows.

    Raises
    ------
    FileFormatError
    """
    size = sum(one.stat().st_size for one in path.rglob("*")) if path.is_dir() else os.stat(path).st_size
    if claimed > _MOST_PACKED * size + _SMALL:
        raise FileFormatError(path, f"it claims to hold {claimed:,} bytes, and has {size:,} itself")


def even_cuts(rows: int, row_nbytes: int) -> list[int]:
    """Cut rows of one size into blocks.

    Examples
    --------
    >>> even_cuts(5, 16 * 2**20)
    [0, 2, 4, 5]
    """
    step = max(1, min(BLOCK_ROWS, BLOCK_BYTES // max(1, row_nbytes)))
    return [*range(0, rows, step), rows]


def rising_cuts(offsets: NDArray[np.int64], token_nbytes: int) -> list[int]:
    """Cut rows of different lengths into blocks."""
    cuts, most = [0], max(1, BLOCK_BYTES // max(1, token_nbytes))
    while cuts[-1] < len(offsets) - 1:
        fitting = int(np.searchsorted(offsets, offsets[cuts[-1]] + most, side="right")) - 1
        cuts.append(min(max(fitting, cuts[-1] + 1), cuts[-1] + BLOCK_ROWS, len(offsets) - 1))
    return cuts


@contextlib.contextmanager
def explained(path: Path, *more: type[Exception]) -> Iterator[None]:
    """Turn the errors of a library about a broken file into `FileFormatError`. Errors of the system pass unchanged."""
    try:
        yield
    except EmbstoreError:
        raise
    except (*_BROKEN, *more) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: a seek outside any file
            raise
        text = str(error).strip().partition("\n")[0] or type(error).__name__
        raise FileFormatError(path, f"it can't be read: {text}") from error


def format_of(path: Path, format: str | None) -> str:
    """Return the format of a file: the given one, or that of its suffix.

    Raises
    ------
    UnknownFormatError
    """
    found = _SUFFIXES.get(path.suffix.lower()) if format is None else format
    if found not in FORMATS:
        raise UnknownFormatError(path, path.suffix if format is None else format, FORMATS)
    return FORMATS[FORMATS.index(found)]  # `found` may be a member of an Enum, whose text is another


def module_of(format: str) -> ModuleType:
    """Import the module of a format."""
    return importlib.import_module(f"embstore.exchange.{format}")

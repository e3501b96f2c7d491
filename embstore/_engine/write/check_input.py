"""Check keys, rows and column values, and convert them to stored values. No I/O.

Rows may be NumPy arrays, lists, and torch tensors of any device, as for `dtypes.as_rows`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, ValuesView
from dataclasses import dataclass
from typing import Any, Final, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.arguments import check_choice
from embstore._engine.format.keys import MAX_KEY_BYTES, UNLABELLED, Key, key_list
from embstore._engine.format.ragged import Padded, Ragged, offsets_of
from embstore._engine.format.record import BFLOAT16, COLUMN_DTYPES, FIELD_DTYPES, STRING, FieldSpec
from embstore._engine.format.text import plain_text
from embstore._engine.format.values import MAX_STRING_BYTES
from embstore._engine.read.dtypes import as_rows, converted, is_torch, widen_bfloat16
from embstore.errors import DtypeError, DuplicateKeysError, NonFiniteError, ShapeError

Casting = Literal["no", "same_kind"]
Stored = np.ndarray[Any, Any] | Ragged
"""Rows of a field as they are stored: bfloat16 as its bits."""

_BLOCK: Final = 2**20  # values checked at a time
_MOST_EXACT: Final = 2**53  # larger integers are not exact as floats

_FLOAT16: Final = "the largest number of float16 is 65,504: store the field as float32 or bfloat16"


@dataclass(frozen=True, slots=True)
class KeyBatch:
    """Checked keys: their texts and parts, all in one order."""

    texts: list[str]
    file_ids: list[str]
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.texts)

    def at(self, places: NDArray[np.int64]) -> KeyBatch:
        """Return the keys at the given positions."""
        chosen = places.tolist()
        return KeyBatch(*([part[i] for i in chosen] for part in (self.texts, self.file_ids, self.class_names)))


def read_keys(keys: Iterable[str | Key]) -> KeyBatch:
    """Return keys to be stored, after a check that each is well formed and none occurs twice.

    Raises
    ------
    KeyFormatError, DuplicateKeysError
    """
    texts, file_ids, class_names = _split(list(key_list(keys)))
    if len(set(texts)) != len(texts):
        seen: set[str] = set()
        twice = [text for text in texts if text in seen or seen.add(text)]  # type: ignore[func-returns-value]
        raise DuplicateKeysError(list(dict.fromkeys(twice)))
    return KeyBatch(texts, file_ids, class_names)


def _split(keys: list[str | Key]) -> tuple[list[str], list[str], list[str]]:
    """Split keys into texts, file_ids and classes. A fast path splits all at once if all are well formed."""
    if set(map(type, keys)) <= {str}:
        texts = cast("list[str]", keys)
        cuts = [text.rfind(":") for text in texts]  # not partition(): 200,000 tuples keep the garbage collector busy
        short = 4 * max(map(len, texts), default=0) < MAX_KEY_BYTES - 1  # UTF-8 has four bytes a character at most
        if short and _is_unicode(texts):
            if max(cuts, default=-1) < 0 and all(texts):
                return texts, texts, [UNLABELLED] * len(texts)
            class_names = [text[cut + 1 :] for text, cut in zip(texts, cuts, strict=True)]
            if min(cuts, default=1) > 0 and all(class_names) and UNLABELLED not in class_names:
                return texts, [text[:cut] for text, cut in zip(texts, cuts, strict=True)], class_names
    parsed = [Key.parse(key) for key in keys]
    return [str(key) for key in parsed], [key.file_id for key in parsed], [key.class_name for key in parsed]


def _is_unicode(texts: list[str]) -> bool:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True


def named_rows(values: Any) -> dict[Any, Any]:
    """Return rows by the names of their fields. None stands for the only field. Rows that come one by one are a list.

    Parameters
    ----------
    values : array_like, iterator of rows, or mapping of field names to these
    """
    given = values if isinstance(values, Mapping) else {None: values}
    return {
        plain_text(name): list(rows) if isinstance(rows, Iterator | ValuesView) else rows
        for name, rows in given.items()
    }


def no_rows(keys: Sequence[str], fields: Mapping[Any, Any]) -> bool:
    """Return whether a call has no keys and empty lists as values, which have no dtype and no shape to check."""
    return not keys and all(isinstance(rows, list | tuple) and not rows for rows in fields.values())


def infer_field(name: str, values: Any) -> FieldSpec:
    """Return the spec of the field that rows would make.

    Raises
    ------
    DtypeError
        float64 (most often an accident, and twice the bytes), or not numbers.
    """
    ragged = isinstance(values, Ragged | Padded)
    rows, dtype = as_rows(values.values if ragged else values, name)
    if ragged:  # tokens, or rows of tokens
        rows = rows.reshape(-1, *rows.shape[2:]) if isinstance(values, Padded) else rows
    if rows.dtype == object and isinstance(values, list | tuple):
        hint = f"rows of one shape, or fields={{{name!r}: FieldSpec(shape=…, ragged=True)}}"
        raise ShapeError(name, expected=hint, found=f"rows of different shapes ({dtype})")
    if dtype == "float64" or dtype not in FIELD_DTYPES:
        raise DtypeError(
            name,
            expected="float32, float16, bfloat16 or integers",
            found=dtype,
            hint='cast it, or declare the field with fields={...: FieldSpec(dtype="float64")}',
        )
    if rows.ndim < 1:
        raise ShapeError(name, expected="rows", found="a single number")
    return FieldSpec(shape=rows.shape[1:], dtype=dtype, ragged=ragged)


def field_values(
    name: str,
    spec: FieldSpec,
    values: Any,
    keys: Sequence[str],
    *,
    casting: Casting = "no",
    stored_as: str | None = None,
) -> Stored:
    """Check rows of a field and return them as they are stored.

    Parameters
    ----------
    name, spec
        Of the field.
    values : array_like, (len(keys), *spec.shape), or Ragged, Padded, or a list of rows of tokens
    keys : sequence of str
        The keys of the rows, for messages.
    casting : {"no", "same_kind"}
        Whether values of another dtype may be converted.
    stored_as : str, optional
        The dtype of `values` if they are stored values already, so that bfloat16 comes as its bits.

    Returns
    -------
    ndarray, (len(keys), *spec.shape), or Ragged
        Of the stored dtype: uint16 for bfloat16.

    Raises
    ------
    ShapeError, DtypeError, NonFiniteError
    """
    offsets = None
    if spec.ragged:
        rows, dtype, offsets = _as_tokens(name, spec, values)
        if len(offsets) - 1 != len(keys):
            raise ShapeError(name, expected=f"{len(keys)} rows", found=f"{len(offsets) - 1} rows")
    else:
        expected = (len(keys), *spec.shape)
        if isinstance(values, Ragged | Padded):
            raise ShapeError(name, expected=expected, found="rows of different lengths")
        rows, dtype = as_rows(values, name)
        if rows.dtype == object or rows.shape != expected:
            raise ShapeError(name, expected=expected, found=dtype if rows.dtype == object else rows.shape)
    dtype = stored_as or dtype
    if dtype != spec.dtype:
        rows = _cast(name, rows, dtype, spec.dtype, casting)
    if spec.floating and spec.nonfinite == "refuse":
        bad = _nonfinite_rows(rows, spec.dtype)
        hint = {"hint": _FLOAT16} if spec.dtype == "float16" and np.isinf(rows[bad]).any() else {}
        if offsets is not None:
            bad = np.unique(np.searchsorted(offsets, bad, side="right") - 1)
        if len(bad):
            raise NonFiniteError(name, [keys[i] for i in bad.tolist()], **hint)
    return rows if offsets is None else Ragged(rows, offsets)


def _as_tokens(name: str, spec: FieldSpec, values: Any) -> tuple[np.ndarray[Any, Any], str, NDArray[np.int64]]:
    """Return the tokens of ragged rows one after the other, the name of their dtype, and the offsets of the rows."""
    if isinstance(values, Ragged):
        tokens, dtype = as_rows(values.values, name)
        offsets = _whole_numbers(name, values.offsets)
        if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(tokens) or (np.diff(offsets) < 0).any():
            raise ShapeError(name, expected=f"offsets that rise from 0 to {len(tokens)}", found=offsets)
    else:
        if isinstance(values, Padded):
            values = _unpadded(name, values)
        unordered = isinstance(values, set | frozenset | Mapping) or hasattr(values, "columns")  # a table yields names
        if unordered or not isinstance(values, Iterable):
            raise ShapeError(name, expected="a list of rows of tokens", found=type(values).__name__)
        parts = [as_rows(row, name) for row in values]
        dtypes = {dtype for _, dtype in parts} or {spec.dtype}
        if len(dtypes) > 1:
            raise DtypeError(name, expected=spec.dtype, found=" and ".join(sorted(dtypes)))
        dtype = dtypes.pop()
        for part, _ in parts:
            if part.ndim != len(spec.shape) + 1 or part.shape[1:] != spec.shape:
                raise ShapeError(name, expected=("length", *spec.shape), found=part.shape)
        offsets = offsets_of(np.array([len(part) for part, _ in parts], dtype=np.int64))
        empty = np.empty((0, *spec.shape), spec.zarr_dtype)
        tokens = np.concatenate([part for part, _ in parts]) if parts else empty
    if tokens.shape[1:] != spec.shape or tokens.ndim < 1:
        raise ShapeError(name, expected=("tokens", *spec.shape), found=tokens.shape)
    return tokens, dtype, offsets


def _whole_numbers(name: str, values: Any) -> NDArray[np.int64]:
    """Return offsets or lengths as int64."""
    numbers, dtype = as_rows(values, name)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise ShapeError(
            name, expected="offsets and lengths in whole numbers, one a row", found=f"{dtype} {numbers.shape}"
        )
    return numbers.astype(np.int64)


def _unpadded(name: str, padded: Padded) -> list[Any]:
    lengths = _whole_numbers(name, padded.lengths)
    longest = padded.values.shape[1] if padded.values.ndim > 1 else 0
    if len(lengths) != len(padded.values) or (len(lengths) and not 0 <= lengths.min() <= lengths.max() <= longest):
        raise ShapeError(name, expected=f"{len(padded.values)} lengths from 0 to {longest}", found=lengths)
    return [row[:length] for row, length in zip(padded.values, lengths.tolist(), strict=True)]


def _cast(name: str, rows: np.ndarray[Any, Any], found: str, wanted: str, casting: Casting) -> np.ndarray[Any, Any]:
    check_choice("casting", casting, get_args(Casting))
    floats = all(kind.startswith(("float", BFLOAT16)) for kind in (found, wanted))
    allowed = floats or (
        BFLOAT16 not in (found, wanted) and found in FIELD_DTYPES and np.can_cast(found, wanted, "same_kind")
    )
    if casting != "same_kind" or not allowed:
        hint = 'pass casting="same_kind" to convert it' if allowed and casting == "no" else ""
        raise DtypeError(name, expected=wanted, found=found, hint=hint)
    numbers = converted(rows, found, wanted)
    if numbers.dtype.kind in "iu" and not floats and (numbers != rows).any():
        raise DtypeError(name, expected=wanted, found=found, hint="some values don't fit")
    return numbers


def _nonfinite_rows(rows: np.ndarray[Any, Any], dtype: str) -> NDArray[np.int64]:
    """Return the positions of rows with NaN or infinity."""
    if not len(rows):
        return np.empty(0, np.int64)
    step = max(1, _BLOCK // max(1, rows[0].size))
    bad = []
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        if dtype == BFLOAT16:
            block = widen_bfloat16(block)
        # A sum is not finite if one of its terms is not. It costs a fraction of isfinite.
        with np.errstate(all="ignore"):
            if np.isfinite(block.sum(dtype=np.float64 if block.dtype == np.float64 else np.float32)):
                continue
        finite = np.isfinite(block).reshape(len(block), -1).all(axis=1)
        bad.append(np.flatnonzero(~finite) + start)
    return np.concatenate(bad) if bad else np.empty(0, np.int64)


def column_values(name: str, dtype: str | None, values: Any, count: int) -> tuple[str, Any]:
    """Check the values of a column. A single string or number stands for all rows.

    Python numbers go into any dtype that holds them, and integers of NumPy too. Floats are rounded to it. An array of
    floats is not: it would lose digits that it has.

    Returns
    -------
    str, ndarray or list of str
        The Zarr data type, and the values.

    Raises
    ------
    ShapeError, DtypeError
    """
    strict = isinstance(values, np.ndarray) or is_torch(values)
    return _converted(name, dtype, _column(name, values, count), count, strict=strict)


def filled_column(name: str, values: Any, count: int, fill: Any, blanks: int) -> tuple[str, Any]:
    """Check the values of a column, which `blanks` times the value `fill` follows. See `column_values`.

    An array keeps its dtype, and `fill` must fit it.
    """
    found = _column(name, values, count)
    if not count:
        dtype, filled = column_values(name, None, fill, max(1, blanks))
        return dtype, filled[:blanks]
    if isinstance(found, list):
        return _converted(name, None, [*found, *_column(name, fill, blanks)], count + blanks)
    dtype, kept = _converted(name, None, found, count)
    return dtype, np.concatenate([kept, column_values(name, dtype, fill, blanks)[1]])


def _column(name: str, values: Any, count: int) -> np.ndarray[Any, Any] | list[Any]:
    """Return the values of a column as an array of numbers, or as a list."""
    if isinstance(values, set | frozenset | Mapping):
        raise ShapeError(name, expected=f"{count} values in the order of the keys", found=f"a {type(values).__name__}")
    if values is None or isinstance(values, str | bytes | bool | int | float):
        return [values] * count
    if not is_torch(values) and not hasattr(values, "__array__"):
        if not isinstance(values, Iterable):
            raise ShapeError(name, expected=f"{count} values", found=type(values).__name__)
        values = list(values)
        if not any(hasattr(kind, "__array__") and not issubclass(kind, np.generic) for kind in set(map(type, values))):
            return cast("list[Any]", values)
    array, dtype = as_rows(values, name)
    if dtype == BFLOAT16:
        raise DtypeError(name, expected=sorted(COLUMN_DTYPES), found=dtype)
    array = np.full(count, array) if array.ndim == 0 else array
    return array.tolist() if array.dtype.kind in "OUT" else array


def _converted(
    name: str, dtype: str | None, found: np.ndarray[Any, Any] | list[Any], count: int, *, strict: bool = False
) -> tuple[str, Any]:
    """Convert the values of a column to a dtype, by default to their own."""
    if len(found) != count or np.ndim(found[:1]) != 1:
        raise ShapeError(name, expected=(count,), found=(len(found), *np.shape(found[:1])[1:]))
    if isinstance(found, list):
        kinds = set(map(type, found))
        texts = [kind for kind in kinds if issubclass(kind, str)]
        if len(texts) == len(kinds) and dtype in (None, STRING):  # an empty list too
            return STRING, _strings(name, found)
        if texts or dtype == STRING:
            kind = str if dtype in (None, STRING) else int | float
            place, odd = next((i, value) for i, value in enumerate(found) if not isinstance(value, kind))
            raise DtypeError(name, expected=dtype or STRING, found=f"{type(odd).__name__} as value {place}")
        found = _numbers(name, dtype, found)
    if found.dtype.name not in COLUMN_DTYPES:
        raise DtypeError(name, expected=dtype or sorted(COLUMN_DTYPES), found=found.dtype.name)
    wanted = dtype or found.dtype.name
    if wanted == STRING or not _fits(found, wanted, strict=strict):
        hint = "" if wanted == STRING else "not all values fit"
        raise DtypeError(name, expected=wanted, found=found.dtype, hint=hint)
    return wanted, found.astype(wanted)


def _numbers(name: str, dtype: str | None, values: list[Any]) -> np.ndarray[Any, Any]:
    """Return numbers as an array that holds all of them exactly. NumPy makes floats of large integers."""
    try:
        array = np.asarray(values, dtype if not values else None)
    except ValueError:  # lists among the values
        array = np.empty(0, object)
    if array.dtype.kind not in "fO" or set(map(type, values)) <= {float}:
        return array
    for place, value in enumerate(values):
        if not isinstance(value, int | float | np.number | np.bool_):
            found = f"{type(value).__name__} as value {place}"
            raise DtypeError(name, expected=dtype or "numbers or text", found=found)
    whole = [int(value) for value in values if isinstance(value, int | np.integer)]
    if whole and len(whole) == len(values):
        for integers in (np.iinfo(np.int64), np.iinfo(np.uint64)):
            if integers.min <= min(whole) and max(whole) <= integers.max:
                return np.array(whole, integers.dtype)
    # No integer dtype holds them, or some stand beside floats.
    only = len(whole) == len(values) or array.dtype == object
    if large := [v for v in whole if abs(v) > _MOST_EXACT and (only or int(float(v)) != v)]:
        raise DtypeError(name, expected="numbers that one dtype holds exactly", found=large[0])
    return array


def _fits(array: np.ndarray[Any, Any], wanted: str, *, strict: bool) -> bool:
    """Return whether a dtype holds the values of an array: integers exactly, floats rounded unless `strict`."""
    if np.can_cast(array.dtype, wanted, "safe") and (array.dtype.kind == "f" or np.dtype(wanted).kind != "f"):
        return True
    with np.errstate(all="ignore"):
        found = array.astype(wanted)
        if array.dtype.kind != "f":
            return bool((found.astype(array.dtype) == array).all() and ((found < 0) == (array < 0)).all())
        return not strict and found.dtype.kind == "f" and bool((np.isfinite(found) == np.isfinite(array)).all())


def _strings(name: str, values: list[str]) -> list[str]:
    plain = set(map(type, values)) <= {str}
    for value in set(values) if plain else values:  # most columns have few different texts
        try:
            if len(value.encode()) > MAX_STRING_BYTES:
                raise ShapeError(name, expected=f"text of at most {MAX_STRING_BYTES:,} bytes", found=len(value))
        except UnicodeEncodeError as error:
            raise DtypeError(name, expected="valid Unicode text", found=repr(value)) from error
    return values if plain else [plain_text(value) for value in values]

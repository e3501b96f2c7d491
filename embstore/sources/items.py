"""Samples in memory, and samples of rows, which are loaded into memory.

Content in memory has no stamp. Only its digest shows a change, so each request computes the digest again.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final

import numpy as np

from embstore._engine.format.keys import Key
from embstore._engine.format.record import BFLOAT16, Origin
from embstore._engine.format.source_columns import with_kind
from embstore._engine.format.text import plain_text
from embstore._engine.io.stamps import UNKNOWN, FileStamp
from embstore._engine.read.dtypes import as_rows, is_torch
from embstore.errors import SampleError
from embstore.sources.base import Content, Sample, checked_name, digest_of, distinct

_PLAIN_KINDS: Final = "biufcSUMm"
"""Kinds of NumPy dtypes whose bytes are their values: no pointers, and no fields, which `dtype.str` omits."""

_PERSON: Final = b"embstore content"  # bytes that spell an array's header don't have the array's digest

_ORIENTATION: Final = 0x0112  # in EXIF


@dataclass(frozen=True, slots=True)
class LoadedSample:
    """A sample that is not a file: a row of a table, or content in memory, which its owner may change in place.

    Attributes
    ----------
    key : Key
    where : str
        Origin of the sample as text.
    load : callable
        Returns the content: text, bytes, array, tensor, PIL image, number, or a tuple, list or dict of these. Raises
        SampleError if the content is missing.
    kind : {"audio", "image", "text"} or None
        Kind of the content, if the source knows it.
    columns : mapping of str to value, optional
        Values of the row's columns. None stands for no value.
    """

    key: Key
    where: str
    load: Callable[[], Any] = field(repr=False)
    kind: str | None = None
    columns: Mapping[str, Any] | None = None

    @property
    def stamp(self) -> FileStamp:
        """Unknown, since no file has a size and mtime to compare."""
        return UNKNOWN

    def _stored_digest(self, content: Content) -> str:
        value = content.value
        return with_kind(
            "text" if isinstance(value, str) else "bytes" if isinstance(value, bytes) else "value", content.digest
        )

    def current_digest(self) -> str:
        """Load the content and return its digest.

        Raises
        ------
        SampleError, TypeError
            See `read`.
        """
        return self.read().digest

    def read(self) -> Content:
        """Load and copy the content. The digest is that of the copy, so later changes of the original do not matter.

        Raises
        ------
        SampleError
            The content is missing, a text is not valid Unicode, or an image can't be loaded.
        TypeError
            This type of content has no digest.
        """
        content = self.load()
        try:
            if isinstance(content, str | bytes):
                # Equal to the digest of a file with these bytes.
                return Content(plain_text(content), digest_of(content))
            state = blake2b(digest_size=16, person=_PERSON)
            copy = _take(content, state.update)
        except UnicodeEncodeError as error:
            raise SampleError(None, "it is not valid Unicode text") from error
        except OSError as error:  # PIL reads an image's file on the first access to pixels
            raise SampleError(None, error.strerror or str(error)) from error
        except TypeError as error:
            raise TypeError(f"{self.key}: {error}") from error
        return Content(copy, state.hexdigest())


def _take(content: Any, update: Callable[[bytes | memoryview], None]) -> Any:
    """Copy content, and feed each part of the copy, with its kind and length, to a digest."""
    if isinstance(content, str | bytes):
        data = content.encode() if isinstance(content, str) else content
        update(f"{'text' if isinstance(content, str) else 'bytes'} {len(data)}\0".encode())
        update(data)
        return plain_text(content)
    if isinstance(content, bytearray | memoryview):
        return _take(bytes(content), update)
    if is_torch(content) and hasattr(content, "detach"):
        tensor = content.detach().clone()
        _feed_array(*as_rows(tensor), update)
        return tensor
    if isinstance(content, np.ndarray | np.generic) and not isinstance(content, np.ma.MaskedArray):
        array = content if isinstance(content, np.generic) else np.array(content, order="C")
        _feed_array(*as_rows(array), update)
        return array
    if content is None or isinstance(content, bool | int | float):
        update(f"{type(content).__name__} {content!r}\0".encode())
        return content
    if isinstance(content, list | tuple):
        update(f"{'list' if isinstance(content, list) else 'tuple'} {len(content)}\0".encode())
        parts = [_take(part, update) for part in content]
        make: Any = getattr(content, "_make", tuple)  # a named tuple stays one
        return parts if isinstance(content, list) else make(parts)
    if isinstance(content, dict) and all(isinstance(name, str) for name in content):
        update(f"dict {len(content)}\0".encode())
        items = {plain_text(name): part for name, part in content.items()}
        taken = {_take(name, update): _take(items[name], update) for name in sorted(items)}
        return {name: taken[name] for name in items}
    if _is_image(content):
        return _take_image(content, update)
    raise TypeError(
        f"there is no digest for {type(content).__module__}.{type(content).__qualname__}: give (key, content, digest); "
        f"for files take Folder or Table"
    )


def _feed_array(values: np.ndarray[Any, Any], dtype: str, update: Callable[[bytes | memoryview], None]) -> None:
    if values.dtype.kind not in _PLAIN_KINDS:
        raise TypeError(f"there is no digest for an array of {values.dtype}: give (key, content, digest)")
    header = BFLOAT16 if dtype == BFLOAT16 else values.dtype.str  # with the byte order
    update(f"array {header} {values.shape}\0".encode())
    if values.nbytes:
        update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)


def _is_image(content: Any) -> bool:
    """Return whether content is an image of PIL. PIL is not imported, since an image proves that it is."""
    pil = sys.modules.get("PIL.Image")
    return pil is not None and isinstance(content, pil.Image)


def _take_image(image: Any, update: Callable[[bytes | memoryview], None]) -> Any:
    """Copy an image, and feed its pixels, palette, transparency and orientation to a digest."""
    copy = image.copy()
    orientation = image.getexif().get(_ORIENTATION)
    if orientation is not None:
        copy.getexif()[_ORIENTATION] = orientation  # PIL copies the value of the file, not a later one
    else:
        copy.getexif().pop(_ORIENTATION, None)
    palette = copy.getpalette("RGBA") if copy.palette is not None else None
    about = (copy.mode, copy.size, palette, copy.info.get("transparency"), orientation)
    update(b"image\0")
    _take(about, update)
    _take(copy.tobytes(), update)
    return copy


def _as_given(content: Any) -> Any:
    return content


def _item_sample(key: Any, content: Any, *digest: str) -> tuple[Key, Sample | LoadedSample]:
    key, load = Key.parse(key), functools.partial(_as_given, content)
    return key, Sample(key, load, digest[0]) if digest else LoadedSample(key, str(key), load)


class Items:
    """Samples in memory.

    Parameters
    ----------
    items : list or mapping
        ``(key, content)`` pairs, or content by key. Content is text, bytes, an array or tensor, a PIL image, a number,
        or a tuple, list or dict of these, such as ``(waveform, sample_rate)``. Other content needs
        ``(key, content, digest)``, with a digest that changes whenever the content does. An iterator is read at once.
    name : str
        Name of the data set.

    Attributes
    ----------
    name : str
    whole : bool
        True: they are all samples of the data set. Set it to False for some of them.
    origin : Origin

    Raises
    ------
    SourceError, DuplicateKeysError, EmptySourceError
        On iteration.
    TypeError
        On iteration: an item has another form. On reading a sample: its content has no digest.

    Examples
    --------
    >>> source = Items({"a": "It barks.", "b": "It purrs."}, name="pets")  # with classes: "a:dog", "b:cat"
    >>> [sample.where for sample in source]
    ['a', 'b']
    >>> next(iter(source)).read().value
    'It barks.'
    """

    whole = True
    origin = Origin(kind="items")

    def __init__(
        self, items: Mapping[str | Key, Any] | Mapping[str, Any] | Iterable[Sequence[Any]], *, name: str
    ) -> None:
        self.name = checked_name(name)
        if not isinstance(items, Iterable):
            raise TypeError(
                f"expected a mapping of keys to contents, or a list of (key, content), found {items!r:.200}"
            )
        # An iterator can be consumed only once.
        self._items: Any = items if isinstance(items, Mapping | Sequence) else list(items)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Sample | LoadedSample]:
        return distinct(self._found(), empty=f"{self.name} has no items")

    def _found(self) -> Iterator[tuple[str, Callable[..., tuple[Key, Sample | LoadedSample]], tuple[Any, ...]]]:
        items = list(self._items.items() if isinstance(self._items, Mapping) else self._items)
        for number, item in enumerate(items):
            place = f"items[{number}]"
            if not isinstance(item, tuple | list) or len(item) not in (2, 3):
                raise TypeError(f"{place}: expected (key, content) or (key, content, digest), found {item!r:.80}")
            if len(item) == 3 and not (isinstance(item[2], str) and item[2]):
                raise TypeError(f"{place}: expected a digest (text), found {item[2]!r:.80}")
            yield place, _item_sample, tuple(item)

    def __repr__(self) -> str:
        return f"<Items {self.name!r}: {len(self)} item(s)>"

"""Reads the mappings of the A2V code: tensors and dictionaries, with class and file in either order in the key."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from embstore._engine.format.keys import UNLABELLED, Key
from embstore._engine.format.record import FieldSpec
from embstore.errors import KeyFormatError
from embstore.exchange import Unreadable
from embstore.exchange.import_options import ImportOptions
from embstore.exchange.memory_file import refusal
from embstore.exchange.naming import row_name
from embstore_fl.overlay import is_cls

_MEDIA: Final = re.compile(
    r"\.(aac|aiff?|amr|au|avi|bmp|flac|gif|jpe?g|json|m4a|mkv|mov|mp3|mp4|mpe?g|npy|oga|ogg|opus|png|ppm|tiff?|txt"
    r"|wav|webm|webp|wma)$",
    re.IGNORECASE,
)
_COLON: Final = re.compile(r":(?!//)")  # not the colon of "s3://bucket"
VALUES = ("embeddings", "embedding")


def key_of(name: object) -> Key:
    """Return the key of a name in the A2V forms: ``file_id:class``, ``class:file name.wav`` or a bare file_id.

    Raises
    ------
    KeyFormatError

    Examples
    --------
    >>> [str(key_of(name)) for name in ("v1:dog", "dog:v1.wav", "s3://b/v1.wav:dog", "v1")]
    ['v1:dog', 'v1:dog', 's3://b/v1.wav:dog', 'v1']
    """
    if not isinstance(name, str):
        raise KeyFormatError(name, f"expected text as its key, found {type(name).__name__}")
    class_name, *rest = _COLON.split(name, maxsplit=1)
    if not rest:
        return Key(name)
    file_name = rest[0]
    if _MEDIA.search(file_name):
        return Key(_MEDIA.sub("", file_name), class_name)
    return Key.parse(name)


OPTIONS: Final = ImportOptions(columns=(), keys=key_of, casting="same_kind")
"""Options for reading files and dictionaries of the A2V code."""


ClassOf = Callable[[str], str | None]


@dataclass(kw_only=True)
class Entries:
    """Embeddings by key, and the entries that could not be read.

    Attributes
    ----------
    values : dict of str to tensor
    unreadable : list of Unreadable
        Each with its key as found and the reason.
    config : mapping or None
        Config in the file, if it has one.
    class_of : callable or None
        Returns the class of a bare file_id, or None. Without it, bare file_ids are unreadable.
    """

    values: dict[str, Any] = field(default_factory=dict)
    unreadable: list[Unreadable] = field(default_factory=list)
    config: Mapping[str, Any] | None = None
    class_of: ClassOf | None = None

    def labelled(self, name: object, key: Key) -> Key | None:
        """Return the key with its class, or add the name to `unreadable` if its class is not known."""
        if key.class_name != UNLABELLED:
            return key
        file_id = _MEDIA.sub("", key.file_id)
        class_name = None if self.class_of is None else self.class_of(file_id)
        if class_name is None:
            self.unreadable.append(Unreadable(name, "it has no class"))
            return None
        return Key(file_id, class_name)

    def keep_alike(self) -> None:
        """Move rows of another shape than that of most to `unreadable`.

        A first axis of size one of three is dropped, as models emit a batch of one. Rows of the first token alone and
        whole sequences may stand in one file, as nodes of both kinds write it.
        """
        self.values = {key: row[0] if row.ndim == 3 and len(row) == 1 else row for key, row in self.values.items()}
        shapes = Counter(tuple(row.shape) for row in self.values.values())
        most = [shape for shape, _ in shapes.most_common() if not is_cls(shape)][:1]
        kept = {*most, *((1, shape[1]) for shape in most if len(shape) == 2)} or {*shapes}
        for key, row in list(self.values.items()):
            if tuple(row.shape) not in kept:
                self.unreadable.append(Unreadable(key, f"its shape is {tuple(row.shape)}, that of most {most[0]}"))
                del self.values[key]

    def add(self, key: object, value: Any) -> None:
        """Add an entry: a tensor or an array, or a dictionary of "embedding" or "embeddings" and "class_name".

        `key_of` parses the key.
        """
        class_name = None
        if isinstance(value, Mapping):
            there = [name for name in VALUES if name in value]
            class_name = value.get("class_name")
            value = value[there[0]] if len(there) == 1 else None
        if reason := refusal(_detached(value), sys.modules.get("torch")):
            self.unreadable.append(Unreadable(key, reason))
            return
        found = row_name(key, class_name, OPTIONS, Path("embeddings"))
        if isinstance(found, Unreadable):
            self.unreadable.append(found)
        elif labelled := self.labelled(key, found[1]):
            self.values.setdefault(str(labelled), as_tensor(value))  # a sample may be kept under both kinds of key


def as_tensor(value: Any) -> Any:
    """Return an array as a tensor over the same memory. The training loop expects tensors."""
    if not isinstance(value, np.ndarray):
        return value
    import torch

    return torch.from_numpy(value if value.flags.writeable and value.flags.c_contiguous else np.array(value))


def _detached(value: Any) -> Any:
    """Return a tensor on the CPU, detached from its graph."""
    return value.detach().cpu() if hasattr(value, "detach") else value


def of_mapping(entries: Mapping[Any, Any], class_of: ClassOf | None = None) -> Entries:
    """Read a mapping of the A2V code. `class_of` returns the class of a bare file_id, or None.

    Examples
    --------
    >>> row = np.ones(3, np.float32)
    >>> mixed = {"v1:dog": row, "dog:v2.wav": {"class_name": "dog", "embeddings": row}, "0_sample_3": row}
    >>> found = of_mapping(mixed)
    >>> list(found.values), [one.key for one in found.unreadable]
    (['v1:dog', 'v2:dog'], ['0_sample_3'])
    """
    found = Entries(class_of=class_of)
    for key, value in entries.items():
        found.add(key, value)
    return found


def as_rows(values: list[Any]) -> np.ndarray[Any, Any]:
    """Stack embeddings into an array ``(n, *shape) float32``."""
    out = np.empty((len(values), *values[0].shape), np.float32)
    for place, value in enumerate(values):
        value = _detached(value)
        out[place] = value.float().numpy() if hasattr(value, "float") else value
    return out


def spec_of(shape: tuple[int, ...]) -> FieldSpec:
    """Return the field of embeddings that a training loop made."""
    return FieldSpec(shape=shape, dtype="float32", layer="last_hidden_state")

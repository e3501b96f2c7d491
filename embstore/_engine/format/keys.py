"""Keys: the text ``file_id:class`` or ``file_id``, and its 128-bit hash. Pure. `key_index` finds the row of a key.

A key is data, never a path: no code opens a file by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.text import plain_text
from embstore._engine.pickles import by_name
from embstore.errors import KeyFormatError

UNLABELLED = "_"
"""The class of samples without a class."""

MAX_KEY_BYTES = 65_535

Hashes = NDArray[np.uint64]


class _Parts(NamedTuple):
    file_id: str
    class_name: str


class Key(_Parts):
    """The two parts of a key. A key without a class has the class ``_``.

    Attributes
    ----------
    file_id : str
    class_name : str
        ``_`` for a sample without a class. None stands for it.

    Examples
    --------
    >>> Key.parse("video_00001:dog")
    Key(file_id='video_00001', class_name='dog')
    >>> str(Key("s3://bucket/a.wav", "dog"))  # the last colon splits
    's3://bucket/a.wav:dog'
    >>> Key.parse("P12345") == Key("P12345") == Key("P12345", None) == Key.parse("P12345:_")
    True
    >>> str(Key("P12345")), str(Key("s3://bucket/a.wav"))  # bare where that parses back
    ('P12345', 's3://bucket/a.wav:_')
    """

    __slots__ = ()

    def __new__(cls, file_id: str, class_name: str | None = None) -> Key:
        return super().__new__(cls, file_id, UNLABELLED if class_name is None else class_name)

    def __str__(self) -> str:
        """Return the key's text: the file_id alone if the key has no class and the text parses back."""
        return key_text(plain_text(self.file_id), plain_text(self.class_name))

    def __reduce__(self) -> tuple[Any, ...]:
        return by_name(type(self), *self)

    @classmethod
    def parse(cls, key: str | Key) -> Key:
        """Split `key` at its last colon. Text without a colon is a file_id without a class.

        Raises
        ------
        KeyFormatError
            It has an empty part, a colon in the class, text that is not valid Unicode, or more than 65,535 bytes of
            UTF-8.
        """
        if isinstance(key, Key):
            for part in key:
                if not isinstance(part, str):
                    raise KeyFormatError(key, f"expected text in both parts, found {type(part).__name__}")
            file_id, class_name = map(plain_text, key)
            if ":" in class_name:
                raise KeyFormatError(key, "there is a colon in the class")
        elif isinstance(key, str):
            file_id, class_name = split_text(plain_text(key))
        else:
            raise KeyFormatError(key, f"expected text, found {type(key).__name__}")
        if not file_id:
            raise KeyFormatError(key, "the file_id is empty")
        if not class_name:
            raise KeyFormatError(key, "the class is empty; leave out the colon of a sample without a class")
        try:
            nbytes = len(file_id.encode()) + len(class_name.encode()) + 1
        except UnicodeEncodeError as error:
            raise KeyFormatError(key, "it is not valid Unicode text") from error
        if nbytes > MAX_KEY_BYTES:
            raise KeyFormatError(key, f"it has {nbytes:,} bytes, {MAX_KEY_BYTES:,} are allowed")
        return cls(file_id, class_name)


def key_text(file_id: str, class_name: str) -> str:
    """Return the text of a key. Without a class it is the bare file_id, unless the file_id has a colon."""
    bare = class_name == UNLABELLED and ":" not in file_id
    return file_id if bare else f"{file_id}:{class_name}"


def split_text(key: str) -> tuple[str, str]:
    """Return the file_id and the class of a key's text, unchecked."""
    file_id, colon, class_name = key.rpartition(":")
    return (file_id, class_name) if colon else (key, UNLABELLED)


def key_list(keys: Iterable[str | Key], *, in_order: bool = True) -> Sequence[str | Key]:
    """Return keys as a sequence. Any iterable is accepted, such as a generator or a Series.

    Parameters
    ----------
    keys
    in_order : bool
        Whether the order of the keys counts. If so, a set is refused: its order differs between processes.

    Raises
    ------
    TypeError
        `keys` is a single key, a set, a table, or not iterable.
    """
    if isinstance(keys, str | bytes | Key) or getattr(keys, "ndim", 1) != 1 or not isinstance(keys, Iterable):
        raise TypeError(f"expected a list of keys, found {keys!r:.200}")
    if in_order and isinstance(keys, set | frozenset):
        raise TypeError("expected a list of keys, found a set, which has no order; pass sorted(keys)")
    return keys if isinstance(keys, list | tuple) else list(keys)


_NO_CLASS: Final = f":{UNLABELLED}".encode()
_new_hash = blake2b(digest_size=16).copy  # a quarter faster than a new object


def hash_keys(keys: Iterable[str | Key]) -> Hashes:
    """Hash keys with BLAKE2b, 16 bytes each (RFC 7693).

    The hash is cryptographic, because file names come from outside. With a fast hash, two keys that collide could be
    made on purpose, and the row of one would be returned for the other.

    Parameters
    ----------
    keys : iterable of str or Key
        The UTF-8 bytes of ``file_id:class`` are hashed, for a bare file_id those of ``file_id:_``. The form of keys is
        not checked.

    Returns
    -------
    ndarray, (n, 2) uint64
        The two little-endian halves of each digest.

    Raises
    ------
    KeyFormatError
        Not text, or not valid Unicode.

    Examples
    --------
    >>> hash_keys(["video_00001:dog"]).shape
    (1, 2)
    """
    digests = []
    for key in keys:
        state = _new_hash()
        try:
            data = str.encode(key)  # type: ignore[arg-type] # one try costs less than a type check for each key
        except (TypeError, UnicodeEncodeError):
            data = _encoded(key)
        state.update(data if b":" in data else data + _NO_CLASS)
        digests.append(state.digest())
    return np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2)


def hash_file_ids(file_ids: Iterable[str]) -> Hashes:
    """Hash file_ids, as `hash_keys` hashes their keys without a class. A sample keeps this hash when its label changes.

    Raises
    ------
    KeyFormatError
    """
    return hash_keys(f"{file_id}:{UNLABELLED}" for file_id in file_ids)


def _encoded(key: object) -> bytes:
    """Encode a key that is not plain text, or raise KeyFormatError."""
    if not isinstance(key, str | Key):
        raise KeyFormatError(key, f"expected text, found {type(key).__name__}")
    try:
        return (Key.__str__(key) if isinstance(key, Key) else str.__str__(key)).encode()
    except UnicodeEncodeError as error:
        raise KeyFormatError(key, "it is not valid Unicode text") from error

"""Decode a text, or the bytes of a text file, to str."""

from __future__ import annotations

from typing import Any

from embstore.encoders.content import kind_of
from embstore.errors import DecodeError


def decode_text(content: Any) -> str:
    r"""Decode a text. Only the byte order mark is removed, which some editors write before a text.

    Parameters
    ----------
    content : str or bytes
        Bytes are UTF-8.

    Raises
    ------
    DecodeError
        The bytes are not UTF-8, or have null characters. Or the text is empty or only white space, and its embedding
        would mean nothing.
    TypeError
        The content is neither str nor bytes.

    Examples
    --------
    >>> decode_text(b"\xef\xbb\xbfa dog barks")
    'a dog barks'
    """
    if isinstance(content, str):
        text = content
        try:
            text.encode()  # with half a surrogate pair a tokenizer fails, and its whole batch with it
        except UnicodeEncodeError as error:
            raise DecodeError(f"not valid Unicode: {error.reason} at character {error.start:,}") from error
    elif isinstance(content, bytes | bytearray | memoryview):
        try:
            text = bytes(content).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            place = kind_of(bytes(content[:512])) or f": {error.reason} at byte {error.start:,}"
            raise DecodeError(f"not UTF-8{place}") from error
    else:
        raise TypeError(f"expected text, or bytes of UTF-8, found {type(content).__name__}")
    if "\0" in text:  # UTF-16 without a byte order mark, or a file of zeros, is valid UTF-8
        raise DecodeError("it has null characters, so it is not a text in UTF-8")
    if not text.strip():
        raise DecodeError("empty text")
    return text

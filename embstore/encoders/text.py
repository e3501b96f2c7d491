"""A text, or the bytes of a text file, to str."""

from __future__ import annotations

from typing import Any

from embstore.errors import DecodeError


def decode_text(content: Any) -> str:
    r"""Decode a text. It is left as it is, but for the byte order mark that some editors write before it.

    Parameters
    ----------
    content : str or bytes
        Bytes are UTF-8.

    Raises
    ------
    DecodeError
        Not UTF-8, or nothing but white space, which would be embedded as if it said something.
    TypeError
        Content of another kind.

    Examples
    --------
    >>> decode_text(b"\xef\xbb\xbfa dog barks")
    'a dog barks'
    """
    if isinstance(content, str):
        text = content
        try:
            text.encode()  # half a surrogate pair is no text, and a tokenizer would fail at it with its whole batch
        except UnicodeEncodeError as error:
            raise DecodeError(f"not valid Unicode: {error.reason} at character {error.start:,}") from error
    elif isinstance(content, bytes | bytearray | memoryview):
        try:
            text = bytes(content).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DecodeError(f"not UTF-8: {error.reason} at byte {error.start:,}") from error
    else:
        raise TypeError(f"expected text, or bytes of UTF-8, found {type(content).__name__}")
    if not text.strip():
        raise DecodeError("empty text")
    return text

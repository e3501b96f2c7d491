"""Undecoded samples in the form of Hugging Face `datasets`: bytes, or the path of a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embstore.errors import SampleError


def file_bytes(content: Mapping[str, Any]) -> bytes:
    """Return the bytes of an undecoded sample: its ``"bytes"``, or else the content of the file at ``"path"``.

    Raises
    ------
    SampleError
        The file can't be read.
    TypeError
        The mapping has neither "bytes" nor "path".
    """
    if content.get("bytes") is not None:
        return bytes(content["bytes"])
    if content.get("path") is None:
        raise TypeError(f'expected a mapping with "bytes" or "path", found {sorted(map(str, content))}')
    path = Path(content["path"])
    try:
        return path.read_bytes()
    except OSError as error:
        raise SampleError(path, error.strerror or str(error)) from error

"""Encode samples that are no source, such as the queries of a search. `BaseEncoder.__call__` is the public form."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.record import DEFAULT_FIELD
from embstore._engine.read.dtypes import as_rows, converted
from embstore.encoders.kinds import fits, kind_of_content, kind_of_file
from embstore.errors import ModalityError, SampleError, ShapeError, UnknownFieldError


def encode_queries(encoder: Any, samples: Iterable[Any], field: str | None, batch_size: int) -> NDArray[np.float32]:
    """Return a row for each sample. See `BaseEncoder.__call__`, whose object is the encoder."""
    if isinstance(samples, str | bytes | PurePath | Mapping) or kind_of_content(samples) == "image":
        raise TypeError(f"expected a list of samples, found one: {samples!r:.200}; pass it in a list")
    if not isinstance(samples, Iterable):
        raise TypeError(f"expected a list of samples, found {samples!r:.200}")
    given = list(samples)
    dim = 0
    if encoder.fields is not None:
        field = next(iter(encoder.fields)) if field is None else field
        encoder = encoder.with_fields([field])
        spec = encoder.fields[field]
        if spec.ragged:
            raise _ragged(field)
        dim = math.prod(spec.shape)
    parts = []
    for start in range(0, len(given), batch_size):
        part = given[start : start + batch_size]
        items = [_decoded(encoder, sample, f"sample {place}") for place, sample in enumerate(part, start)]
        parts.append(_vectors(encoder.encode(items), field))
    return np.concatenate(parts) if parts else np.empty((0, dim), np.float32)


def _decoded(encoder: Any, sample: Any, where: str) -> Any:
    """Return a sample as the encoder's `encode` takes it."""
    modality = encoder.modality
    path = Path(sample) if isinstance(sample, PurePath) or _names_a_file(sample, modality) else None
    kind = kind_of_content(sample) if path is None else kind_of_file(path)
    where = where if path is None else str(path)
    if not fits(kind, modality):
        hint = f"use an encoder for {kind}, which of a model with two towers is from_pretrained(…, modality={kind!r})"
        raise ModalityError(where, expected=modality, found=str(kind), hint=hint)
    try:
        with contextlib.nullcontext(sample) if path is None else _opened(path) as content:
            read = path is not None and not encoder.opens_files
            return encoder.decode(content.read() if read else content)
    except Exception as error:
        error.add_note(f"found at {where}")
        raise


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise SampleError(path, error.strerror or str(error)) from error


def _names_a_file(sample: Any, modality: str | None) -> bool:
    """Return whether a text is the path of a file. For an encoder of texts it never is."""
    if modality in ("text", None) or not isinstance(sample, str):
        return False
    with contextlib.suppress(OSError, ValueError):  # longer than a path may be, or with null characters
        return Path(sample).is_file() or kind_of_file(sample) is not None
    return False


def _vectors(found: Any, field: str | None) -> NDArray[np.float32]:
    """Return the rows of one field, each flattened: ``(n, dim) float32``."""
    if isinstance(found, Mapping):
        field = next(iter(found)) if field is None else field
        if field not in found:
            raise UnknownFieldError(field, found)
        found = found[field]
    values, dtype = as_rows(found, field or DEFAULT_FIELD)
    if values.dtype == object:
        raise _ragged(field or DEFAULT_FIELD)
    numbers: NDArray[np.float32] = converted(values, dtype, "float32").reshape(len(values), -1)
    return numbers


def _ragged(field: str) -> ShapeError:
    return ShapeError(field, expected="rows of one shape", found='a ragged field: pass a pooled one, as field="mean"')

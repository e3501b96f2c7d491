"""The columns in which `embed` notes the content that each row was made from. Pure.

Tables and plots leave them out by default: they are not the user's.
"""

from __future__ import annotations

from typing import Final

from embstore._engine.format.record import STRING, ColumnSpec

DIGEST_COLUMN: Final = "source_digest"
"""Column with the digest of the content that each row was computed from, and its kind: ``text:dfdc66c1…``."""

COMPUTED_KINDS: Final = ("text", "bytes", "value")
"""Kinds of digests that embstore computed from the content: of texts, of bytes and files, of other values."""

GIVEN_KIND: Final = "given"
"""Kind of digests that a user gave. They are versions of one sample: those of two samples are not compared."""

SIZE_COLUMN: Final = "source_size"
MTIME_COLUMN: Final = "source_mtime"
IDENTITY_COLUMN: Final = "source_identity"
STAMP_COLUMNS: Final = (SIZE_COLUMN, MTIME_COLUMN, IDENTITY_COLUMN)
"""Columns with the `FileStamp` of the file that each row was computed from, a number each."""

ORIGINS_COLUMN: Final = "source_origins"
"""Column with the places where each row's content was found: bit *i* for `Record.origins[i]`. 0 is unknown."""

SOURCE_COLUMNS: Final = {DIGEST_COLUMN: STRING, **dict.fromkeys((*STAMP_COLUMNS, ORIGINS_COLUMN), "int64")}
"""Dtypes of these columns."""

UNKNOWN_SOURCE: Final = {DIGEST_COLUMN: "", **dict.fromkeys(STAMP_COLUMNS, -1), ORIGINS_COLUMN: 0}
"""Values of these columns for a row of unknown content."""


def is_source_column(name: str, column: ColumnSpec | None) -> bool:
    """Return whether a column is one of these. With the same name and another dtype, it is the user's own."""
    return column is not None and SOURCE_COLUMNS.get(name) == column.dtype


def with_kind(kind: str, digest: str) -> str:
    """Return a digest as it is stored."""
    return f"{kind}:{digest}"


def without_kind(stored: str) -> str:
    """Return the digest in a stored one. The rows of one key are compared without the kind."""
    kind, colon, digest = stored.partition(":")
    return digest if colon and kind in (*COMPUTED_KINDS, GIVEN_KIND) else stored


def is_computed(stored: str) -> bool:
    """Return whether a stored digest shows that rows of two keys were made from the same content."""
    return stored.partition(":")[0] in COMPUTED_KINDS and ":" in stored

"""The columns in which `embed` notes the content that each row was made from. Pure.

Tables and plots leave them out by default: they are not the user's.
"""

from __future__ import annotations

from typing import Final

from embstore._engine.format.record import STRING

DIGEST_COLUMN: Final = "source_digest"
"""Column with the digest of the content that each row was computed from."""

SIZE_COLUMN: Final = "source_size"
MTIME_COLUMN: Final = "source_mtime"
IDENTITY_COLUMN: Final = "source_identity"
STAMP_COLUMNS: Final = (SIZE_COLUMN, MTIME_COLUMN, IDENTITY_COLUMN)
"""Columns with the `FileStamp` of the file that each row was computed from, a number each."""

SOURCE_COLUMNS: Final = {DIGEST_COLUMN: STRING, **dict.fromkeys(STAMP_COLUMNS, "int64")}
"""Dtypes of these columns."""

UNKNOWN_SOURCE: Final = {DIGEST_COLUMN: "", **dict.fromkeys(STAMP_COLUMNS, -1)}
"""Values of these columns for a row of unknown content."""

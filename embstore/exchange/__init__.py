"""Import files into a store, and export rows to files of other tools. Names are imported when they are first used.

`import_file` reads ``.pt``, ``.npz``, ``.h5``, ``.safetensors`` and ``.parquet`` files, `export_file` writes them. The
module of a format knows only the layout of its files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from embstore._engine.lazy import lazily

if TYPE_CHECKING:
    from embstore.exchange.exporting import export_file as export_file
    from embstore.exchange.file_contents import Unreadable as Unreadable
    from embstore.exchange.importing import ImportResult as ImportResult
    from embstore.exchange.importing import import_file as import_file

_HOMES = {
    "ImportResult": "importing",
    "Unreadable": "file_contents",
    "export_file": "exporting",
    "import_file": "importing",
}

__all__ = [*_HOMES]

if not TYPE_CHECKING:  # type checkers would accept any misspelt name
    __getattr__, __dir__ = lazily(__name__, _HOMES)

"""Options of an import: fields and columns to take, and how to read names and rows. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from embstore._engine.format.keys import UNLABELLED, Key
from embstore._engine.format.record import check_name
from embstore._engine.write.check_input import Casting
from embstore.errors import UnknownColumnError, UnknownFieldError
from embstore.exchange.store_metadata import KeyOrder


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """Fields and columns to take from a file, and how to read its names and rows.

    Attributes
    ----------
    field : str or None
        The only field to take, or a new name for the only field of the file.
    columns : tuple of str or None
        The columns to take. None takes all.
    keys : KeyOrder or callable, optional
        The order in names, or a function of a name that returns its key.
    class_name : str
        The class of names without one.
    key_column : str or None
        The array of keys. None takes one of the usual names.
    ragged : bool
        True if rows of different lengths make a ragged field.
    casting : {"no", "same_kind"}
        "same_kind" converts rows of another dtype than most.
    """

    field: str | None = None
    columns: tuple[str, ...] | None = None
    keys: KeyOrder | Callable[[Any], Key | str] | None = None
    class_name: str = UNLABELLED
    key_column: str | None = None
    ragged: bool = False
    casting: Casting = "no"

    def __post_init__(self) -> None:
        if self.keys is not None and not callable(self.keys) and self.keys not in get_args(KeyOrder):
            raise ValueError(f"expected keys to be one of {get_args(KeyOrder)} or a function, found {self.keys!r}")


def chosen_fields(found: Sequence[str], wanted: str | None, path: Path) -> dict[str, str]:
    """Return the name of each field to take, and its name in the file."""
    if wanted is None:
        return {name: name for name in found}
    if wanted in found:
        return {wanted: wanted}
    if len(found) == 1:
        return {check_name(wanted): found[0]}
    raise UnknownFieldError(wanted, found, path=path)


def chosen_columns(found: Sequence[str], wanted: Sequence[str] | None, path: Path) -> list[str]:
    """Return the columns to take."""
    for name in wanted or ():
        if name not in found:
            raise UnknownColumnError(name, found, path=path)
    return [name for name in found if wanted is None or name in wanted]

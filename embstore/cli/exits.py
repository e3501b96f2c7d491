"""How the command ends: a status for each thing that a caller can do next."""

from __future__ import annotations

from typing import Final

from embstore import errors

DONE, PARTLY, WRONG, ABSENT, ANOTHER, AGAIN, BROKEN, INTERRUPTED, UNREAD = 0, 1, 2, 3, 4, 5, 6, 130, 141

EXITS: Final = {
    DONE: "all that was asked for is done",
    PARTLY: "done in part, or the answer is no: samples failed, a lookup missed, damage was found",
    WRONG: "the command is wrong: change it",
    ABSENT: "it is not there: a store, a file, a key, a library",
    ANOTHER: "it is another one than you think: config, fields, something is at the path already",
    AGAIN: "the machine or the network refuses, or a store moved on: mend that, and repeat",
    BROKEN: "a store or a file is damaged",
    INTERRUPTED: "interrupted",
    UNREAD: "whoever read the output went away",
}

_STATUSES: Final[tuple[tuple[int, tuple[type[BaseException], ...]], ...]] = (
    (BROKEN, (errors.CorruptStoreError, errors.FileFormatError)),
    (
        ANOTHER,
        (
            errors.ConfigMismatchError,
            errors.FieldMismatchError,
            errors.WeightsChangedError,
            errors.StoreExistsError,
            errors.KeysExistError,
            errors.UnsupportedFormatError,
        ),
    ),
    (ABSENT, (LookupError, FileNotFoundError, ImportError)),
    (AGAIN, (errors.StoreChangedError, OSError)),
)


def status_of(error: BaseException) -> int:
    """Return the status that an error ends the command with."""
    return next((status for status, classes in _STATUSES if isinstance(error, classes)), WRONG)

"""Exit statuses: one for each reaction of a caller."""

from __future__ import annotations

from typing import Final

from embstore import errors

DONE, PARTLY, WRONG, ABSENT, ANOTHER, AGAIN, BROKEN, INTERRUPTED, UNREAD = 0, 1, 2, 3, 4, 5, 6, 130, 141

EXITS: Final = {
    DONE: "done",
    PARTLY: "done in part, or the answer is no: samples failed, a lookup missed, damage was found",
    WRONG: "the command line is wrong: change it",
    ABSENT: "not found: a store, a file, a key, a library",
    ANOTHER: "not the expected one: another config, other fields, or something exists at the path",
    AGAIN: "the machine or the network failed, or the store has changed: fix that, and repeat",
    BROKEN: "a store or a file is damaged",
    INTERRUPTED: "interrupted",
    UNREAD: "the reader of the output closed it",
}

_STATUSES: Final[tuple[tuple[int, tuple[type[BaseException], ...]], ...]] = (
    (BROKEN, (errors.CorruptStoreError, errors.FileFormatError)),
    (
        ANOTHER,
        (
            errors.ConfigMismatchError,
            errors.CopyRefusedError,
            errors.DatasetMismatchError,
            errors.OptionsMismatchError,
            errors.EncoderChangedError,
            errors.FieldMismatchError,
            errors.WeightsChangedError,
            errors.RefitError,
            errors.StoreExistsError,
            errors.KeysExistError,
            errors.UnsupportedFormatError,
        ),
    ),
    (ABSENT, (LookupError, FileNotFoundError, ImportError)),
    (AGAIN, (errors.StoreChangedError, OSError)),
)


def status_of(error: BaseException) -> int:
    """Return the exit status for an error."""
    return next((status for status, classes in _STATUSES if isinstance(error, classes)), WRONG)

"""Every error that embstore raises on purpose, chosen by what the caller should do next.

::

    EmbstoreError
    |-- the call is wrong: change it
    |   |-- KeyFormatError (ValueError)         a key is not "file_id:class"
    |   |-- DuplicateKeysError (ValueError)     one key twice in one append
    |   |-- KeysExistError (ValueError)         stored already; see if_exists=
    |   |-- ShapeError (ValueError)             rows of another shape or number
    |   |-- DtypeError (TypeError)              a dtype that would need a cast
    |   |-- NonFiniteError (ValueError)         NaN or infinity
    |   |-- NameRefusedError (ValueError)       not a name for a field or column
    |   |-- ConfigError (ValueError)            not a config, or an option out of range
    |   |-- UnknownModelError (ValueError)      a model that from_pretrained does not know
    |   |-- MissingWeightsError (ValueError)    an output whose weights are not in the checkpoint
    |   |-- EmptySourceError (ValueError)       a source without samples
    |   |-- EmptyViewError (ValueError)         a view without rows, where some are needed
    |   |-- AlignmentError (ValueError)         views that can't be joined row by row
    |   |-- TooManyPairsError (ValueError)      more near duplicates than anyone reads
    |   |-- UnknownFormatError (ValueError)     a file of a kind that is not imported or exported
    |   `-- DeadRowsError (ValueError)          a whole column that has deleted rows
    |-- it is not there: look elsewhere, or make it
    |   |-- MissingKeysError (KeyError)
    |   |-- UnknownFieldError (KeyError)
    |   |-- UnknownColumnError (KeyError)
    |   |-- UnknownClassError (KeyError)
    |   |-- NotAStoreError (FileNotFoundError)
    |   |-- ModelFilesError (FileNotFoundError) a model's folder without a file that it needs
    |   |-- CacheMissError (LookupError)        no store has this config
    |   `-- AmbiguousConfigError (LookupError)  several stores fit: say which
    |-- it is another one than you think: compare, or make a new one
    |   |-- ConfigMismatchError (ValueError)
    |   |-- FieldMismatchError (ValueError)     a field of that name holds something else
    |   |-- WeightsChangedError (RuntimeError)  a model's files changed under its encoder
    |   |-- StoreExistsError (FileExistsError)
    |   `-- UnsupportedFormatError (ValueError) written by a newer embstore
    |-- it moved on: refresh or open again, then repeat
    |   |-- StoreReplacedError (OSError)        the folder was exchanged or removed
    |   |-- StoreChangedError (RuntimeError)    rows were renumbered or erased
    |   `-- CommitUncertainError (OSError)      re-read: the commit is whole or absent
    |-- the machine refuses: mend that, then repeat
    |   |-- ReadOnlyError (PermissionError)
    |   |-- StoreLockedError (TimeoutError)
    |   |-- StorageFullError (OSError)
    |   |-- MissingLibraryError (ImportError)   a library that comes with an extra
    |   |-- RemoteError (OSError)               a server that fails, again and again
    |   `-- NetworkFileSystemError (OSError)
    |-- the sample is bad: mend or remove the file; a run records it and goes on
    |   `-- SampleError (ValueError)            it can't be read
    |       `-- DecodeError                     it was read, and is not what it should be
    |-- the file to import is bad: get it anew, or save it in another way
    |   `-- FileFormatError (ValueError)        it is broken, or holds something else
    |       `-- UnsafeFileError                 reading it could run code
    `-- CorruptStoreError (OSError)             verify, then salvage

Each carries its facts as attributes, named in the class. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

_SHOWN = 10


def _listed(items: Iterable[object], total: int) -> str:
    """First few of `items`, and how many more there are."""
    shown = [repr(item) for _, item in zip(range(_SHOWN), items, strict=False)]
    more = total - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more > 0 else "")


class EmbstoreError(Exception):
    """Base of all errors raised by embstore; its facts are attributes."""

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self._facts = facts  # `errno` is OSError's own, and not in __dict__
        for name, value in facts.items():
            setattr(self, name, value)

    def __str__(self) -> str:
        """Return the message (KeyError and OSError would show it otherwise)."""
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with the facts, so that an error crosses from a worker process."""
        return _rebuild, (type(self), self.message, self._facts)


def _rebuild(cls: type[EmbstoreError], message: str, facts: dict[str, Any]) -> EmbstoreError:
    error = cls.__new__(cls, message)
    EmbstoreError.__init__(error, message, **facts)
    return error


class KeyFormatError(EmbstoreError, ValueError):
    """A key that is not ``file_id:class``. Attributes: `key`, `reason`."""

    key: object
    reason: str

    def __init__(self, key: object, reason: str) -> None:
        super().__init__(f"{key!r} is not a key 'file_id:class': {reason}", key=key, reason=reason)


class DuplicateKeysError(EmbstoreError, ValueError):
    """The same key more than once in one append, or source. Attributes: `keys`, `path`, `found_at` (where each was)."""

    keys: tuple[str, ...]
    path: Path | None
    found_at: tuple[str, ...]

    def __init__(self, keys: Sequence[str], *, path: Path | None = None, found_at: Sequence[str] = ()) -> None:
        places = f": {' and '.join(found_at)}" if found_at else ""
        super().__init__(
            f"{len(keys)} key(s) occur more than once: {_listed(keys, len(keys))}{places}",
            keys=tuple(keys),
            path=path,
            found_at=tuple(found_at),
        )


class KeysExistError(EmbstoreError, ValueError):
    """Keys that are stored already. Attributes: `keys`, `path`."""

    keys: tuple[str, ...]
    path: Path | None

    def __init__(self, keys: Sequence[str], *, path: Path | None = None) -> None:
        super().__init__(
            f"{len(keys)} key(s) are stored already in {path}: {_listed(keys, len(keys))}; "
            f'use if_exists="skip" or if_exists="replace"',
            keys=tuple(keys),
            path=path,
        )


class ShapeError(EmbstoreError, ValueError):
    """Rows of another shape or number. Attributes: `field`, `expected`, `found`."""

    field: str
    expected: object
    found: object

    def __init__(self, field: str, *, expected: object, found: object) -> None:
        super().__init__(
            f"{field!r}: expected {expected}, found {found}",
            field=field,
            expected=expected,
            found=found,
        )


class DtypeError(EmbstoreError, TypeError):
    """A dtype that would need a cast. Attributes: `field`, `expected`, `found`."""

    field: str
    expected: object
    found: object

    def __init__(self, field: str, *, expected: object, found: object, hint: str = "") -> None:
        super().__init__(
            f"{field!r}: expected dtype {expected}, found {found}" + (f"; {hint}" if hint else ""),
            field=field,
            expected=expected,
            found=found,
        )


class NonFiniteError(EmbstoreError, ValueError):
    """NaN or infinity in rows to be stored, or to be calculated with. Attributes: `field`, `keys`."""

    field: str
    keys: tuple[str, ...]

    def __init__(
        self,
        field: str,
        keys: Sequence[str],
        *,
        hint: str = 'a field may allow them with FieldSpec(nonfinite="allow")',
    ) -> None:
        super().__init__(
            f"{field!r}: NaN or infinity in {len(keys)} row(s): {_listed(keys, len(keys))}; {hint}",
            field=field,
            keys=tuple(keys),
        )


class NameRefusedError(EmbstoreError, ValueError):
    """Not a name for a field or a column. Attributes: `name`, `reason`."""

    name: object
    reason: str

    def __init__(self, name: object, reason: str) -> None:
        super().__init__(f"{name!r} can't name a field or a column: {reason}", name=name, reason=reason)


class ConfigError(EmbstoreError, ValueError):
    """A value that a config can't hold. Attributes: `attribute`, `value`, `reason`."""

    attribute: str
    value: object
    reason: str

    def __init__(self, attribute: str, value: object, reason: str) -> None:
        super().__init__(
            f"config attribute {attribute or '(top)'!r}: {reason}, found {value!r}",
            attribute=attribute,
            value=value,
            reason=reason,
        )


class DeadRowsError(EmbstoreError, ValueError):
    """A whole column that holds deleted rows. Attributes: `field`, `path`, `dead`."""

    field: str
    path: Path
    dead: int

    def __init__(self, field: str, *, path: Path, dead: int) -> None:
        super().__init__(
            f"{field!r} of {path} has {dead:,} deleted row(s): ask for dead='include' and index it "
            f"with store.rows, or take store.select().to_numpy(), or compact() the store",
            field=field,
            path=path,
            dead=dead,
        )


class MissingKeysError(EmbstoreError, KeyError):
    """Keys that are not stored, all of them. Attributes: `keys`, `path`."""

    keys: tuple[str, ...]
    path: Path | None

    def __init__(self, keys: Sequence[str], *, path: Path | None = None, what: str = "") -> None:
        super().__init__(
            f"{len(keys)} key(s) are not {what or f'in {path}'}: {_listed(keys, len(keys))}",
            keys=tuple(keys),
            path=path,
        )


class UnknownFieldError(EmbstoreError, KeyError):
    """A field that the store does not have. Attributes: `field`, `available`, `path`."""

    field: str | None
    available: tuple[str, ...]
    path: Path | None

    def __init__(
        self, field: str | None, available: Iterable[str], *, path: Path | None = None, hint: str = ""
    ) -> None:
        names = tuple(available)
        what = "no field was named" if field is None else f"there is no field {field!r}"
        where = "" if path is None else f" in {path}"
        super().__init__(
            f"{what}{where}; there are {', '.join(names) or 'none yet'}{'; ' if hint else ''}{hint}",
            field=field,
            available=names,
            path=path,
        )


class UnknownColumnError(EmbstoreError, KeyError):
    """A column that the store lacks, or that an append left out. Attributes: `column`, `available`, `path`."""

    column: str
    available: tuple[str, ...]
    path: Path | None

    def __init__(
        self,
        column: str,
        available: Iterable[str],
        *,
        path: Path | None = None,
        what: str = "there is no column",
    ) -> None:
        names = tuple(available)
        where = "" if path is None else f" in {path}"
        super().__init__(
            f"{what} {column!r}{where}; there are {', '.join(names) or 'none'}",
            column=column,
            available=names,
            path=path,
        )


class UnknownClassError(EmbstoreError, KeyError):
    """Classes that are not in the list given. Attributes: `class_names`, `available`."""

    class_names: tuple[str, ...]
    available: tuple[str, ...]

    def __init__(self, class_names: Iterable[str], available: Iterable[str]) -> None:
        names, known = tuple(class_names), tuple(available)
        super().__init__(
            f"no class {_listed(names, len(names))} among {_listed(known, len(known))}",
            class_names=names,
            available=known,
        )


class UnknownModelError(EmbstoreError, ValueError):
    """A model that `from_pretrained` does not know. Attributes: `model`, `found`, `known` (model types)."""

    model: str
    found: str
    known: tuple[str, ...]

    def __init__(self, model: str, found: str, known: Iterable[str]) -> None:
        names = tuple(known)
        super().__init__(
            f"{model} is of the type {found!r}, which from_pretrained does not know; it knows {', '.join(names)}. "
            f"Wrap the model itself: embstore.encoders.ModuleEncoder, or FunctionEncoder for any function",
            model=model,
            found=found,
            known=names,
        )


class MissingWeightsError(EmbstoreError, ValueError):
    """Weights that a checkpoint lacks, so that they would be random. Attributes: `model`, `weights`, `fields`."""

    model: str
    weights: tuple[str, ...]
    fields: tuple[str, ...]

    def __init__(self, model: str, weights: Sequence[str], fields: Sequence[str]) -> None:
        super().__init__(
            f"{model} has no weights for {_listed(weights, len(weights))}; {', '.join(fields)} would be random, "
            f"and others at each load: ask for other fields",
            model=model,
            weights=tuple(weights),
            fields=tuple(fields),
        )


class ModelFilesError(EmbstoreError, FileNotFoundError):
    """A model's folder lacks a file. Attributes: `path` (of the folder), `missing`."""

    path: Path
    missing: str

    def __init__(self, path: Path, missing: str) -> None:
        super().__init__(f"{path} has no {missing}", path=path, missing=missing)


class WeightsChangedError(EmbstoreError, RuntimeError):
    """A model's files changed since its fingerprint was taken: make the encoder again. Attribute: `path`."""

    path: Path

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} changed since the encoder's fingerprint was taken; call from_pretrained again", path=path
        )


class EmptySourceError(EmbstoreError, ValueError):
    """A source without samples. Attributes: `path`, `reason`."""

    path: Path | None
    reason: str

    def __init__(self, path: Path | None, reason: str) -> None:
        super().__init__(f"{path if path is not None else 'the source'}: {reason}", path=path, reason=reason)


class EmptyViewError(EmbstoreError, ValueError):
    """A view without rows, where some are needed. Attributes: `path` (of the store), `what` (a verb, as "plot")."""

    path: Path
    what: str

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"cannot {what}: the view of {path} is empty", path=path, what=what)


class AlignmentError(EmbstoreError, ValueError):
    """Views that can't be joined row by row. Attributes: `view` (its name), `on`, `ids`, `reason`."""

    view: str
    on: str
    ids: tuple[str, ...]
    reason: str

    def __init__(self, view: str, on: str, ids: Sequence[str], reason: str) -> None:
        super().__init__(
            f"{view!r} can't be joined on {on}: {reason}: {_listed(ids, len(ids))}",
            view=view,
            on=on,
            ids=tuple(ids),
            reason=reason,
        )


class TooManyPairsError(EmbstoreError, ValueError):
    """More pairs than were allowed: raise the threshold. Attributes: `threshold`, `most`."""

    threshold: float
    most: int

    def __init__(self, threshold: float, most: int) -> None:
        super().__init__(
            f"more than {most:,} pairs are at least {threshold:g} alike: raise threshold=, or most=",
            threshold=threshold,
            most=most,
        )


class SampleError(EmbstoreError, ValueError):
    """A sample that can't be read. Attributes: `path` (None for content in memory), `reason`."""

    path: Path | None
    reason: str

    def __init__(self, path: Path | None, reason: str) -> None:
        super().__init__(f"{path}: {reason}" if path is not None else reason, path=path, reason=reason)


class DecodeError(SampleError):
    """Content that is not what it should be: empty, of another format, too short. Attributes: `path`, `reason`.

    Raised by decoders, which have the content alone: `embed` knows the sample's key and path.
    """

    def __init__(self, reason: str, *, path: Path | None = None) -> None:
        super().__init__(path, reason)


class NotAStoreError(EmbstoreError, FileNotFoundError):
    """A path that is not an embstore store. Attributes: `path`, `reason`."""

    path: Path
    reason: str

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} is not an embstore store: {reason}", path=path, reason=reason)


class CacheMissError(EmbstoreError, LookupError):
    """No store of this config. Attributes: `config`, `differences` (from the nearest), `path` (of the cache)."""

    config: Any
    differences: tuple[Any, ...]
    path: Path

    def __init__(self, reason: str, *, config: Any, differences: Sequence[Any], path: Path) -> None:
        super().__init__(reason, config=config, differences=tuple(differences), path=path)


class AmbiguousConfigError(EmbstoreError, LookupError):
    """Several stores fit where one was wanted. Attributes: `wanted`, `paths`."""

    wanted: Mapping[str, object]
    paths: tuple[Path, ...]

    def __init__(self, wanted: Mapping[str, object], paths: Sequence[Path], detail: str) -> None:
        super().__init__(
            f"{len(paths)} stores have {dict(wanted)!r}; they differ in {detail}: "
            f"{_listed([str(p) for p in paths], len(paths))}",
            wanted=dict(wanted),
            paths=tuple(paths),
        )


class ConfigMismatchError(EmbstoreError, ValueError):
    """The store's config differs from the one given. Attributes: `path`, `differences`.

    `differences` is a tuple of `embstore.Difference` (name, expected, found).
    """

    path: Path
    differences: tuple[Any, ...]

    def __init__(self, path: Path, differences: Sequence[Any]) -> None:
        super().__init__(
            f"the config of {path} differs: " + "; ".join(str(d) for d in differences),
            path=path,
            differences=tuple(differences),
        )


class FieldMismatchError(EmbstoreError, ValueError):
    """A field is stored with another meaning. Attributes: `field`, `path`, `expected` (stored), `found`."""

    field: str
    path: Path | None
    expected: object
    found: object

    def __init__(self, field: str, *, path: Path | None, expected: object, found: object) -> None:
        super().__init__(
            f"field {field!r} in {path} is {expected}, the encoder gives {found}; give it another name",
            field=field,
            path=path,
            expected=expected,
            found=found,
        )


class StoreExistsError(EmbstoreError, FileExistsError):
    """Something is already at the path. Attribute: `path`."""

    path: Path

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} exists already", path=path)


class UnsupportedFormatError(EmbstoreError, ValueError):
    """A store that this version can't read. Attributes: `path`, `expected`, `found`."""

    path: Path | None
    expected: object
    found: object

    def __init__(self, path: Path | None, *, expected: object, found: object) -> None:
        super().__init__(
            f"{path} needs a newer embstore: it has {found}, this version reads {expected}",
            path=path,
            expected=expected,
            found=found,
        )


class StoreReplacedError(EmbstoreError, OSError):
    """The store's folder was exchanged or removed: open it again. Attribute: `path`."""

    path: Path

    def __init__(self, path: Path, detail: str = "its folder was replaced or removed") -> None:
        super().__init__(f"{path}: {detail} since it was opened; open it again", path=path)


class StoreChangedError(EmbstoreError, RuntimeError):
    """Rows were renumbered or erased: select again. Attributes: `path`, `expected`, `found`."""

    path: Path
    expected: object
    found: object

    def __init__(self, path: Path, detail: str, *, expected: object, found: object) -> None:
        super().__init__(f"{path}: {detail}", path=path, expected=expected, found=found)


class CommitUncertainError(EmbstoreError, OSError):
    """The commit was renamed into place but not known to be on disk. Attributes: `path`, `commit_id`.

    The store holds the commit whole or not at all: `refresh()`, then ask `missing(keys)`.
    """

    path: Path
    commit_id: str

    def __init__(self, path: Path, commit_id: str) -> None:
        super().__init__(
            f"{path}: commit {commit_id} is in place, but syncing it to disk failed; refresh() "
            f"and ask missing(keys) before repeating it",
            path=path,
            commit_id=commit_id,
        )


class ReadOnlyError(EmbstoreError, PermissionError):
    """Writing to what can't be written. Attributes: `path`, `reason`."""

    path: Path
    reason: str

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"can't write to {path}: {reason}", path=path, reason=reason)


class StoreLockedError(EmbstoreError, TimeoutError):
    """Another writer held the lock for too long. Attributes: `path`, `holder`, `timeout` (seconds)."""

    path: Path
    holder: str
    timeout: float

    def __init__(self, path: Path, *, holder: str, timeout: float) -> None:
        super().__init__(
            f"{path} is held by {holder or 'another writer'} and was not free within {timeout:g} s",
            path=path,
            holder=holder,
            timeout=timeout,
        )


class StorageFullError(EmbstoreError, OSError):
    """No space, quota or file size left; the commit did not happen. Attributes: `path`, `errno`."""

    path: Path
    errno: int | None

    def __init__(self, path: Path, cause: OSError) -> None:
        super().__init__(
            f"{path}: {cause.strerror}; nothing was committed and nothing was lost",
            path=path,
            errno=cause.errno,
        )


class RemoteError(EmbstoreError, OSError):
    """A file at a URL that can't be fetched. Attributes: `url`, `reason`, `attempts`."""

    url: str
    reason: str
    attempts: int

    def __init__(self, url: str, reason: str, *, attempts: int) -> None:
        tried = f", {attempts} times" if attempts > 1 else ""
        super().__init__(f"{url} can't be fetched{tried}: {reason}", url=url, reason=reason, attempts=attempts)


class NetworkFileSystemError(EmbstoreError, OSError):
    """Writing to a network or FUSE file system without opting in. Attributes: `path`, `filesystem`."""

    path: Path
    filesystem: str

    def __init__(self, path: Path, filesystem: str) -> None:
        super().__init__(
            f"{path} lies on {filesystem}, whose locks and syncs can't be relied on; pass "
            f'network="allow" to write there all the same, from one machine at a time',
            path=path,
            filesystem=filesystem,
        )


class CorruptStoreError(EmbstoreError, OSError):
    """What is on disk is not what was committed. Attributes: `path` (of the file), `detail`."""

    path: Path
    detail: str

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(
            f"{path}: {detail}; embstore.verify lists the rows affected, embstore.salvage keeps the rest",
            path=path,
            detail=detail,
        )


class UnknownFormatError(EmbstoreError, ValueError):
    """A file of a kind that is not imported or exported. Attributes: `path`, `found`, `known` (formats)."""

    path: Path
    found: str
    known: tuple[str, ...]

    def __init__(self, path: Path, found: str, known: Iterable[str]) -> None:
        names = tuple(known)
        super().__init__(
            f"{path}: {found or 'no suffix'!r} is not one of {', '.join(names)}; name another file's kind with format=",
            path=path,
            found=found,
            known=names,
        )


class MissingLibraryError(EmbstoreError, ImportError):
    """A library that comes with an extra, and is not installed. Attributes: `library`, `extra`."""

    library: str
    extra: str

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{library} is needed {purpose}: pip install 'embstore[{extra}]'", library=library, extra=extra
        )


class FileFormatError(EmbstoreError, ValueError):
    """A file that is not what it should be, or broken. Attributes: `path`, `reason`."""

    path: Path
    reason: str

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}", path=path, reason=reason)


class UnsafeFileError(FileFormatError):
    """A file that can't be read without running code from it; none was run. Attributes: `path`, `reason`."""

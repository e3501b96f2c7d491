"""Every error that embstore raises on purpose, grouped by the next step of the caller.

::

    EmbstoreError
    |-- the call is wrong: change it
    |   |-- KeyFormatError (ValueError)         a key is not "file_id:class" or "file_id"
    |   |-- DuplicateKeysError (ValueError)     one key twice in one append
    |   |-- KeysExistError (ValueError)         stored already, see if_exists=
    |   |-- ShapeError (ValueError)             rows of another shape or number
    |   |-- DtypeError (TypeError)              a dtype that would need a cast
    |   |-- NonFiniteError (ValueError)         NaN or infinity
    |   |-- NameRefusedError (ValueError)       not a name for a field or column
    |   |-- ConfigError (ValueError)            not a config, or an option out of range
    |   |-- UnknownModelError (ValueError)      a model that from_pretrained does not know
    |   |-- IgnoredPartsError (ValueError)      settings or weights that transformers would ignore
    |   |-- MissingWeightsError (ValueError)    an output whose weights are not in the checkpoint
    |   |-- ModalityError (ValueError)          an encoder of texts for recordings
    |   |-- SourceError (ValueError)            samples without a valid key, or folders that can't be listed
    |   |-- EmptySourceError (ValueError)       a source without samples
    |   |-- EmptyViewError (ValueError)         a view without rows, where some are needed
    |   |-- PartialResultError (RuntimeError)   rows in order of a shard: merge the parts first
    |   |-- AlignmentError (ValueError)         views that can't be joined row by row
    |   |-- TooManyPairsError (ValueError)      more near duplicates than anyone reads
    |   |-- UnknownFormatError (ValueError)     a file in a format that is not imported or exported
    |   |-- LayoutError (ValueError)            rows that one array a key can't hold
    |   `-- DeadRowsError (ValueError)          a whole column that has deleted rows
    |-- it is not there: look elsewhere, or make it
    |   |-- MissingKeysError (KeyError)
    |   |   `-- RelabelledKeysError            the same content has other keys now
    |   |-- UnknownFieldError (KeyError)
    |   |-- UnknownColumnError (KeyError)
    |   |-- UnknownClassError (KeyError)
    |   |-- NotAStoreError (FileNotFoundError)
    |   |-- ModelFilesError (FileNotFoundError) a model's folder without a file that it needs
    |   |   `-- ModelNotFoundError              neither a folder, nor a model of the Hub that can be had
    |   |-- CacheMissError (LookupError)        no store has this config
    |   `-- AmbiguousConfigError (LookupError)  several stores fit: say which
    |-- it differs from the expected one: compare, or make a new one
    |   |-- ConfigMismatchError (ValueError)
    |   |-- DatasetMismatchError (ValueError)   another data set under the name of a stored one
    |   |-- OptionsMismatchError (ValueError)   options for a new store that the stored one lacks
    |   |-- FieldMismatchError (ValueError)     a field of that name holds something else
    |   |-- CopyRefusedError (ValueError)       a mirror of another store, or a push that would undo an erase
    |   |-- RefitError (ValueError)             an estimator whose encoder changed after fit
    |   |-- WeightsChangedError (RuntimeError)  a model's files changed under its encoder
    |   |-- EncoderChangedError (RuntimeError)  other values than stored, for the same config
    |   |   |-- RandomEncoderError              other values each time
    |   |   `-- BatchDependentError             other values in a batch than alone
    |   |-- StoreExistsError (FileExistsError)
    |   `-- UnsupportedFormatError (ValueError) written by a newer embstore
    |-- the store changed: refresh or open again, then repeat
    |   |-- StoreReplacedError (OSError)        the folder was exchanged or removed
    |   |-- StoreChangedError (RuntimeError)    rows were renumbered or erased
    |   `-- CommitUncertainError (OSError)      re-read, the commit is whole or absent
    |-- the machine refuses: repair that, then repeat
    |   |-- ReadOnlyError (PermissionError)
    |   |-- StoreLockedError (TimeoutError)
    |   |-- StorageFullError (OSError)
    |   |-- EraseUnfinishedError (OSError)      call erase again with the same keys
    |   |-- CompactionRefusedError (OSError)    the file system can't exchange folders
    |   |-- MissingLibraryError (ImportError)   a library that comes with an extra
    |   |-- RemoteError (OSError)               a server that fails repeatedly
    |   `-- NetworkFileSystemError (OSError)
    |-- the sample is bad: repair or remove the file (a run records it and goes on)
    |   `-- SampleError (ValueError)            it can't be read
    |       `-- DecodeError                     it was read, and its content is not valid
    |-- the file to import is bad: get it again, or save it in another way
    |   `-- FileFormatError (ValueError)        it is broken, or holds something else
    |       `-- UnsafeFileError                 reading it could run code
    `-- CorruptStoreError (OSError)             verify, then salvage

Each error has its facts as attributes, which the docstring of its class names. No I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY
from inspect import Parameter, Signature
from pathlib import PurePath
from typing import Any, ClassVar, Generic, TypeVar, dataclass_transform

_T = TypeVar("_T")

# The bounds of a message: an error may have 20,000 keys, or one key of a megabyte, which a message must not show whole.
_MOST_VALUE = 1000  # characters of one value
_MOST_LIST = 2000  # characters of a list
_MOST_ITEM = 500  # characters of one item in a list
_MOST_QUOTED = 10  # items of a list of keys


def _cut(text: str, most: int) -> str:
    """Return a text of at most `most` characters. Of a longer one, return the start and the end."""
    if len(text) <= most:
        return text
    end = most // 2
    return f"{text[: most - end - 1]}…{text[-end:]}"


class Items(Generic[_T]):
    """A fact that is given as any iterable and kept as a tuple."""

    def __init__(self, *, default: Any = Parameter.empty) -> None:
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, error: object, owner: type) -> tuple[_T, ...]:
        """Return the items. On the class itself, raise AttributeError."""
        if error is None or self._name not in vars(error):
            raise AttributeError(self._name)
        found: tuple[_T, ...] = vars(error)[self._name]
        return found

    def __set__(self, error: object, items: Iterable[_T]) -> None:
        vars(error)[self._name] = tuple(items)


class _Shown:
    """A fact as a template shows it, cut to the bounds above."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __repr__(self) -> str:
        return _cut(repr(self._value), _MOST_VALUE)

    def __format__(self, spec: str) -> str:
        if not spec or not isinstance(self._value, tuple):
            return _cut(format(self._value, spec), _MOST_VALUE)
        if spec == "count":
            return f"{len(self._value):,}"
        if spec == "quoted":
            return _listed(self._value, ", ", _quoted, _MOST_QUOTED)
        return _listed(self._value, spec, str, _MOST_LIST)


def _quoted(item: object) -> str:
    return repr(str(item) if isinstance(item, PurePath) else item)


def _listed(items: Sequence[object], separator: str, shown: Callable[[object], str], most: int) -> str:
    """Return the first items, `most` or fewer, and the number of the others."""
    texts, room = [], _MOST_LIST
    for item in items[:most]:
        text = _cut(shown(item), _MOST_ITEM)
        room -= len(text) + len(separator)
        if room < 0:
            break
        texts.append(text)
    more = len(items) - len(texts)
    return (separator.join(texts) or "none") + (f" and {more:,} more" if more else "")


@dataclass_transform(eq_default=False, field_specifiers=(Items,))
class EmbstoreError(Exception):
    """Base of all errors raised by embstore. Its facts are attributes.

    A subclass annotates its facts, as a dataclass does. They are the parameters of its constructor, in this order, and
    keyword-only after ``_: KW_ONLY``. Its `template` makes the message: ``{path}``, ``{key!r}``, ``{dead:,}``.
    Of a tuple, the first items are shown: ``{keys:quoted}`` quotes them, ``{known:, }`` joins them with the given
    separator. ``{keys:count}`` is their number. The bounds above hold for every fact.
    """

    template: ClassVar[str]
    _signature: ClassVar[Signature] = Signature()

    def __init_subclass__(cls) -> None:
        """Make the parameters of the constructor from the annotations."""
        super().__init_subclass__()
        kind: Any = Parameter.POSITIONAL_OR_KEYWORD
        parameters = list(cls._signature.parameters.values())
        for name in vars(cls).get("__annotations__", ()):
            if name == "_":
                kind = Parameter.KEYWORD_ONLY
                continue
            default = vars(cls).get(name, Parameter.empty)
            default = default.default if isinstance(default, Items) else default
            parameters.append(Parameter(name, kind, default=default))
        cls._signature = Signature(sorted(parameters, key=lambda parameter: parameter.kind))

    def __init__(self, *args: Any, **facts: Any) -> None:
        given = self._signature.bind(*args, **facts)
        given.apply_defaults()
        self._hold(given.arguments)
        kept = self._facts
        self._fill(self._template().format_map({name: _Shown(fact) for name, fact in kept.items()}), kept)

    def _fill(self, message: str, facts: Mapping[str, Any]) -> None:
        super().__init__(message)  # before the facts, because the constructor of OSError empties `errno`
        self.message = message
        self._hold(facts)

    def _hold(self, facts: Mapping[str, Any]) -> None:
        for name, fact in facts.items():
            setattr(self, name, fact)

    def _template(self) -> str:
        """Return the template. A subclass may choose one by its facts."""
        return self.template

    @property
    def _facts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._signature.parameters}

    def __str__(self) -> str:
        """Return the message. KeyError would quote it, and OSError would add its arguments."""
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with the facts, so that an error can come from a worker process."""
        return _rebuild, (type(self), self.message, self._facts)


def _rebuild(cls: type[EmbstoreError], message: str, facts: dict[str, Any]) -> EmbstoreError:
    error = cls.__new__(cls, message)
    error._fill(message, facts)
    return error


class KeyFormatError(EmbstoreError, ValueError):
    """A key that is neither ``file_id:class`` nor ``file_id``. Attributes: `key`, `reason`."""

    key: object
    reason: str
    template = "{key!r} is not a key 'file_id:class' or 'file_id': {reason}"


class DuplicateKeysError(EmbstoreError, ValueError):
    """The same key more than once in one append or source.

    Attributes: `keys`, `path`, `found_at` (the two places of the first key), `hint`.
    """

    keys: Items[str] = Items()
    _: KW_ONLY
    path: PurePath | None = None
    found_at: Items[str] = Items(default=())
    hint: str = ""

    def _template(self) -> str:
        places = ": {found_at: and }" if self.found_at else ""
        return "{keys:count} key(s) occur more than once: {keys:quoted}" + places + ("; {hint}" if self.hint else "")


class KeysExistError(EmbstoreError, ValueError):
    """Keys that are stored already. Attributes: `keys`, `path`."""

    keys: Items[str] = Items()
    _: KW_ONLY
    path: PurePath | None = None
    template = (
        '{keys:count} key(s) are stored already in {path}: {keys:quoted}; use if_exists="skip" or if_exists="replace"'
    )


class ShapeError(EmbstoreError, ValueError):
    """Rows of another shape or number. Attributes: `field`, `expected`, `found`."""

    field: str
    _: KW_ONLY
    expected: object
    found: object
    template = "{field!r}: expected {expected}, found {found}"


class DtypeError(EmbstoreError, TypeError):
    """A dtype that would need a cast. Attributes: `field`, `expected`, `found`, `hint`."""

    field: str
    _: KW_ONLY
    expected: object
    found: object
    hint: str = ""

    def _template(self) -> str:
        return "{field!r}: expected dtype {expected}, found {found}" + ("; {hint}" if self.hint else "")


class NonFiniteError(EmbstoreError, ValueError):
    """NaN or infinity in rows to be stored or used in a calculation. Attributes: `field`, `keys`, `hint`."""

    field: str
    keys: Items[str] = Items()
    _: KW_ONLY
    hint: str = 'a field may allow them with FieldSpec(nonfinite="allow")'
    template = "{field!r}: NaN or infinity in {keys:count} row(s): {keys:quoted}; {hint}"


class NameRefusedError(EmbstoreError, ValueError):
    """Not a name for a field or a column. Attributes: `name`, `reason`."""

    name: object
    reason: str
    template = "{name!r} can't name a field or a column: {reason}; choose another name"


class ConfigError(EmbstoreError, ValueError):
    """A value that a config can't hold. Attributes: `attribute`, `value`, `reason`."""

    attribute: str
    value: object
    reason: str

    def _template(self) -> str:
        return "config attribute " + ("{attribute!r}" if self.attribute else "'(top)'") + ": {reason}, found {value!r}"


class DeadRowsError(EmbstoreError, ValueError):
    """A whole column that holds deleted rows. Attributes: `field`, `path`, `dead`."""

    field: str
    _: KW_ONLY
    path: PurePath
    dead: int
    template = (
        "{field!r} of {path} has {dead:,} deleted row(s): ask for dead='include' and index it "
        "with store.rows, or take store.select().to_numpy(), or compact() the store"
    )


class MissingKeysError(EmbstoreError, KeyError):
    """Keys that are not stored: all of them.

    Attributes: `keys`, `path`, `what` (replaces "in `path`"), `hint`, `others` (stored keys of the first ten file_ids).
    """

    keys: Items[str] = Items()
    _: KW_ONLY
    path: PurePath | None = None
    what: str = ""
    hint: str = ""
    others: Items[str] = Items(default=())

    def _template(self) -> str:
        where = "{what}" if self.what else "in {path}"
        others = "; the same file_ids are stored as {others:quoted}" if self.others else ""
        return f"{{keys:count}} key(s) are not {where}: {{keys:quoted}}" + others + ("; {hint}" if self.hint else "")


class RelabelledKeysError(MissingKeysError):
    """Keys whose rows moved to other keys, as after a change of their label.

    Attributes: `moved` (the present keys, in the order of `keys`), and those of `MissingKeysError`: `keys`, `path`,
    `what`, `hint`, `others`.
    """

    moved: Items[str] = Items(default=())

    def _template(self) -> str:
        missing, hint, advice = super()._template().partition("; {hint}")
        return f"{missing}; their content has other keys now: {{moved:quoted}}{hint}{advice}"


class UnknownFieldError(EmbstoreError, KeyError):
    """A field that the store does not have. Attributes: `field` (None: not named), `available`, `path`, `hint`."""

    field: str | None
    available: Items[str] = Items()
    _: KW_ONLY
    path: PurePath | None = None
    hint: str = ""

    def _template(self) -> str:
        what = "no field was named" if self.field is None else "no field {field!r}"
        where = "" if self.path is None else " in {path}"
        return f"{what}{where}; fields: {{available:, }}" + ("; {hint}" if self.hint else "")


class UnknownColumnError(EmbstoreError, KeyError):
    """A column that the store lacks, or that an append omits.

    Attributes: `column`, `available`, `path`, `what`, `hint`.
    """

    column: str
    available: Items[str] = Items()
    _: KW_ONLY
    path: PurePath | None = None
    what: str = "no column"
    hint: str = ""

    def _template(self) -> str:
        where = "" if self.path is None else " in {path}"
        return "{what} {column!r}" + where + "; columns: {available:, }" + ("; {hint}" if self.hint else "")


class UnknownClassError(EmbstoreError, KeyError):
    """Classes that are not in the list given. Attributes: `class_names`, `available`, `hint`."""

    class_names: Items[str] = Items()
    available: Items[str] = Items()
    _: KW_ONLY
    hint: str = ""

    template = "no class {class_names:quoted}; classes: {available:quoted}"

    def _template(self) -> str:
        return self.template + ("; {hint}" if self.hint else "")


class UnknownModelError(EmbstoreError, ValueError):
    """A model that `from_pretrained` does not know. Attributes: `model`, `found`, `known` (model types)."""

    model: str
    found: str
    known: Items[str] = Items()
    template = (
        "{model} is of the type {found!r}, which from_pretrained does not know; it knows {known:, }. "
        "Wrap the model itself: embstore.encoders.ModuleEncoder, or FunctionEncoder for any function"
    )


class IgnoredPartsError(EmbstoreError, ValueError):
    """Parts of a model that transformers would ignore. Attributes: `model`, `what` (settings or weights), `names`."""

    model: str
    what: str
    names: Items[str] = Items()
    template = (
        "{model} has {what} that the installed transformers ignores: {names:quoted}; its rows would be those of "
        "another model. Wrap the model itself: embstore.encoders.ModuleEncoder, or FunctionEncoder for any function"
    )


class MissingWeightsError(EmbstoreError, ValueError):
    """Weights that a checkpoint lacks. They would be random. Attributes: `model`, `weights`, `fields`."""

    model: str
    weights: Items[str] = Items()
    fields: Items[str] = Items()
    template = (
        "{model} has no weights for {weights:quoted}; {fields:, } would be random "
        "and differ at each load: ask for other fields"
    )


class ModelFilesError(EmbstoreError, FileNotFoundError):
    """The folder of a model lacks a file. Attributes: `path` (of the folder), `missing`."""

    path: PurePath
    missing: str
    template = "{path} has no {missing}; expected the folder of a whole model"


class ModelNotFoundError(ModelFilesError):
    """Neither a folder nor a model of the Hub. Attributes: `path` (where a folder would be), `missing`, `reason`."""

    reason: str
    template = "there is no folder {path}, and no model of the Hub: {reason}; check the name"


class WeightsChangedError(EmbstoreError, RuntimeError):
    """The files of a model changed since its fingerprint was taken. Make the encoder again. Attribute: `path`."""

    path: PurePath
    template = "{path} changed since the encoder's fingerprint was taken; call from_pretrained again"


class ModalityError(EmbstoreError, ValueError):
    """Samples that the encoder can't take. Attributes: `where` (of the first one), `expected`, `found`, `hint`."""

    where: str
    _: KW_ONLY
    expected: str
    found: str
    hint: str
    template = "{where}: expected {expected}, which the encoder takes, found {found}; {hint}"


class EncoderChangedError(EmbstoreError, RuntimeError):
    """The encoder gives other values than it gave before, though its config is the same.

    Attributes: `key` (of the sample), `field`, `difference`, `tolerance` (both relative to the largest number of the
    row), `path` (of the store).
    """

    key: str
    field: str
    _: KW_ONLY
    difference: float
    tolerance: float
    path: PurePath
    template = (
        "the encoder changed: for {key!r}, {field!r} differs by {difference:.2g} from the row in {path} (tolerance "
        "{tolerance:g}), in the same way each time; change its config, such as a version, to encode all samples again; "
        "if values depend on the batch or the device, pass canaries=0"
    )


class RandomEncoderError(EncoderChangedError):
    """The encoder gives other values each time.

    Attributes: `key`, `field`, `difference`, `tolerance`, `path`, as for `EncoderChangedError`.
    """

    template = (
        "the encoder is random: for {key!r}, {field!r} differs by {difference:.2g} each time (tolerance {tolerance:g})"
        "; turn off dropout and augmentation, or pass canaries=0 to keep the first result in {path}"
    )


class BatchDependentError(EncoderChangedError):
    """The encoder gives a sample other values in a batch than alone.

    Attributes: `key`, `field`, `difference`, `tolerance`, `path`, as for `EncoderChangedError`.
    """

    template = (
        "the values depend on the batch: for {key!r}, {field!r} differs by {difference:.2g} if the sample is encoded "
        "alone (tolerance {tolerance:g}); mask the padding, and turn off statistics over the batch, or pass canaries=0 "
        "to keep the values of this batch in {path}"
    )


class SourceError(EmbstoreError, ValueError):
    """All parts of a source that make no samples. Attributes: `path`, `problems` (place and reason), `hint`."""

    path: PurePath | None
    problems: Items[str] = Items()
    hint: str = ""

    def _template(self) -> str:
        where = "the source" if self.path is None else "{path}"
        return where + " has {problems:count} part(s) that make no sample: {problems:quoted}; {hint}"


class EmptySourceError(EmbstoreError, ValueError):
    """A source without samples. Attributes: `path`, `reason`."""

    path: PurePath | None
    reason: str

    def _template(self) -> str:
        return "the source: {reason}" if self.path is None else "{path}: {reason}"


class EmptyViewError(EmbstoreError, ValueError):
    """A view without rows, where some are needed. Attributes: `path` (of the store), `what` (a verb, as "plot")."""

    path: PurePath
    what: str
    template = "cannot {what}: the view of {path} is empty; select at least one row"


class PartialResultError(EmbstoreError, RuntimeError):
    """Rows in the order of a source, of which a run encoded one part. Attributes: `what`, `shard`, `path`."""

    what: str
    shard: tuple[int, int]
    _: KW_ONLY
    path: PurePath
    template = (
        "the result has no {what}: the run encoded part {shard} of the source into {path}; merge the parts first with "
        "embstore.merge, then call embed without shard="
    )


class AlignmentError(EmbstoreError, ValueError):
    """Views that can't be joined row by row. Attributes: `view` (its name), `on`, `ids`, `reason`."""

    view: str
    on: str
    ids: Items[str] = Items()
    reason: str
    template = "{view!r} can't be joined on {on}: {reason}: {ids:quoted}"


class TooManyPairsError(EmbstoreError, ValueError):
    """More pairs than allowed. Raise the threshold. Attributes: `threshold`, `most`."""

    threshold: float
    most: int
    template = "more than {most:,} pairs have a similarity of at least {threshold:g}: raise threshold= or most="


class SampleError(EmbstoreError, ValueError):
    """A sample that can't be read. Attributes: `path` (None for content in memory), `reason`."""

    path: PurePath | None
    reason: str

    def _template(self) -> str:
        return "{reason}" if self.path is None else "{path}: {reason}"


class DecodeError(SampleError):
    """Content that is not valid: empty, in another format, too short. Attributes: `path`, `reason`.

    Raised by decoders, which have the content alone. `embed` knows the key and path of the sample.
    """

    def __init__(self, reason: str, *, path: PurePath | None = None) -> None:
        super().__init__(path, reason)


class NotAStoreError(EmbstoreError, FileNotFoundError):
    """A path that is not an embstore store. Attributes: `path`, `reason`."""

    path: PurePath
    reason: str
    template = "{path} is not an embstore store: {reason}"


class CacheMissError(EmbstoreError, LookupError):
    """No store of this config. Attributes: `config`, `differences` (from the nearest), `path`, `reason`.

    `path` is the path of the cache.
    """

    reason: str
    _: KW_ONLY
    config: Any
    differences: Items[Any] = Items()
    path: PurePath
    template = "{reason}"


class AmbiguousConfigError(EmbstoreError, LookupError):
    """Several stores match where one is needed. Attributes: `wanted`, `paths`, `detail` (their differences)."""

    wanted: Mapping[str, object]
    paths: Items[PurePath] = Items()
    detail: str
    template = "{paths:count} stores have {wanted!r}; they differ in {detail}: {paths:quoted}"


class ConfigMismatchError(EmbstoreError, ValueError):
    """The config of the store differs from the given one. Attributes: `path`, `differences`.

    `differences` is a tuple of `embstore.Difference` (name, expected, found).
    """

    path: PurePath
    differences: Items[Any] = Items()
    template = "the config of {path} differs: {differences:; }"


class DatasetMismatchError(EmbstoreError, ValueError):
    """Rows of a data set are not those of the source. Attributes: `dataset`, `path`, `keys`, `reason`.

    `keys` are those of the rows that the run would replace or delete. It changed nothing.
    """

    dataset: str
    keys: Items[str] = Items()
    _: KW_ONLY
    path: PurePath
    reason: str
    template = (
        "{keys:count} rows of {dataset!r} in {path} {reason}: {keys:quoted}; if the source is another data set, "
        "give it another name=; if the data set moved and changed, or these rows are outdated, pass force=True"
    )


class OptionsMismatchError(EmbstoreError, ValueError):
    """The store was made with other fields, columns or options than the given ones. Attributes: `path`, `differences`.

    `differences` is a tuple of `embstore.Difference` (name, expected: the given value, found: the stored one).
    """

    path: PurePath
    differences: Items[Any] = Items()
    template = (
        "{path} exists and differs from the options given: {differences:; }; leave these out, or add fields and "
        "columns with add_field and set_columns, or make another store"
    )


class FieldMismatchError(EmbstoreError, ValueError):
    """A field is stored with another meaning. Attributes: `field`, `path`, `expected` (stored), `found`."""

    field: str
    _: KW_ONLY
    path: PurePath | None
    expected: object
    found: object
    template = "field {field!r} in {path} is {expected}, the encoder gives {found}; give it another name"


class RefitError(EmbstoreError, ValueError):
    """The encoder of a fitted estimator has another config than at `fit`. Attributes: `differences`.

    `differences` is a tuple of `embstore.Difference` (name, expected, found).
    """

    differences: Items[Any] = Items()
    template = "the encoder changed after fit: {differences:; }; call fit again"


class CopyRefusedError(EmbstoreError, ValueError):
    """A push or a pull that would mix two stores, or bring erased rows back. Attributes: `path`, `url`, `reason`."""

    path: PurePath
    url: PurePath
    reason: str
    template = "can't copy between {path} and {url}: {reason}"


class StoreExistsError(EmbstoreError, FileExistsError):
    """Something is already at the path. Attribute: `path`."""

    path: PurePath
    template = "{path} exists already; choose another path, or remove it first"


class UnsupportedFormatError(EmbstoreError, ValueError):
    """A store that this version can't read. Attributes: `path`, `expected`, `found`."""

    path: PurePath | None
    _: KW_ONLY
    expected: object
    found: object
    template = "{path} needs a newer embstore: it has {found}, this version reads {expected}"


class StoreReplacedError(EmbstoreError, OSError):
    """The folder of the store was exchanged or removed. Open it again. Attributes: `path`, `detail`."""

    path: PurePath
    detail: str = "its folder was replaced or removed"
    template = "{path}: {detail} since it was opened; open it again"


class StoreChangedError(EmbstoreError, RuntimeError):
    """Rows were renumbered or erased. Select again. Attributes: `path`, `detail`, `expected`, `found`."""

    path: PurePath
    detail: str
    _: KW_ONLY
    expected: object
    found: object
    template = "{path}: {detail}"


class CommitUncertainError(EmbstoreError, OSError):
    """The commit was renamed into place, but may not be on disk. Attributes: `path`, `commit_id`.

    The store holds the commit whole or not at all. Call `refresh()`, then `missing(keys)`.
    """

    path: PurePath
    commit_id: str
    template = (
        "{path}: commit {commit_id} is in place, but syncing it to disk failed; call refresh() "
        "and missing(keys) before you repeat it"
    )


class ReadOnlyError(EmbstoreError, PermissionError):
    """The path is read-only, or the store was opened for reading. Attributes: `path`, `reason`."""

    path: PurePath
    reason: str
    template = "can't write to {path}: {reason}"


class StoreLockedError(EmbstoreError, TimeoutError):
    """Another writer held the lock for too long. Attributes: `path`, `holder`, `timeout` (seconds)."""

    path: PurePath
    _: KW_ONLY
    holder: str
    timeout: float

    def _template(self) -> str:
        holder = "{holder}" if self.holder else "another writer"
        waited = " and was not free within {timeout:g} s" if self.timeout else ""
        return f"{{path}} is held by {holder}{waited}"


class StorageFullError(EmbstoreError, OSError):
    """No space, quota or file size is left. The commit did not happen. Attributes: `path`, `errno`, `reason`."""

    path: PurePath
    errno: int | None
    reason: str | None
    template = "{path}: {reason}; nothing was committed and nothing was lost"

    def __init__(self, path: PurePath, cause: OSError) -> None:
        super().__init__(path, cause.errno, cause.strerror)


class EraseUnfinishedError(EmbstoreError, OSError):
    """Rows were deleted, but some of their bytes may still be on disk. Attributes: `path`, `reason`.

    The next writer goes on with the erase. The same call of `erase`, repeated, finishes it and returns the receipt.
    """

    path: PurePath
    reason: str
    template = (
        "{path}: the keys are deleted, but bytes of their rows may still be on disk: {reason}; mend that, then call "
        "erase again with the same keys, which finishes it and returns the receipt"
    )


class CompactionRefusedError(EmbstoreError, OSError):
    """The file system can't exchange a store with its compacted copy. Attributes: `path`, `reason`."""

    path: PurePath
    reason: str
    template = (
        "{path} can't be compacted where it is: {reason}; nothing was changed; embstore.merge(dest, path) makes a new "
        "store of its live rows"
    )


class RemoteError(EmbstoreError, OSError):
    """A file at a URL that can't be fetched. Attributes: `url`, `reason`, `attempts`."""

    url: str
    reason: str
    _: KW_ONLY
    attempts: int

    def _template(self) -> str:
        return "{url} can't be fetched" + (", {attempts} times" if self.attempts > 1 else "") + ": {reason}"


class NetworkFileSystemError(EmbstoreError, OSError):
    """Writing to a network or FUSE file system without ``network="allow"``. Attributes: `path`, `filesystem`."""

    path: PurePath
    filesystem: str
    template = (
        "{path} lies on {filesystem}, whose locks and syncs can't be relied on; pass "
        'network="allow" to write there anyway, from one machine at a time'
    )


class CorruptStoreError(EmbstoreError, OSError):
    """A file differs from the committed one. Attributes: `path` (of the file), `detail`."""

    path: PurePath
    detail: str
    template = "{path}: {detail}; embstore.verify lists the rows affected, embstore.salvage keeps the rest"


class UnknownFormatError(EmbstoreError, ValueError):
    """A file in a format that is not imported or exported. Attributes: `path`, `found`, `known` (formats)."""

    path: PurePath
    found: str
    known: Items[str] = Items()

    def _template(self) -> str:
        found = "{found!r}" if self.found else "'no suffix'"
        return f"{{path}}: {found} is not one of {{known:, }}; name the format with format="


class MissingLibraryError(EmbstoreError, ImportError):
    """A library of an extra is not installed. Attributes: `library`, `extra`, `purpose`."""

    library: str
    extra: str
    purpose: str
    template = "{library} is needed {purpose}: pip install 'embstore[{extra}]'"


class LayoutError(EmbstoreError, ValueError):
    """Rows that a layout of exports can't hold. Attributes: `path`, `layout`, `reason`."""

    path: PurePath
    layout: str
    reason: str
    template = "{path}: can't be written with layout={layout!r}: {reason}"


class FileFormatError(EmbstoreError, ValueError):
    """A file that is broken, or has other content than expected. Attributes: `path`, `reason`."""

    path: PurePath
    reason: str
    template = "{path}: {reason}"


class UnsafeFileError(FileFormatError):
    """A file that can't be read without running its code. It was not run. Attributes: `path`, `reason`."""

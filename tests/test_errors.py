"""Errors: each has its facts, which survive a pickle, and a message that stays short."""

import copy
import inspect
import pickle
import re
from pathlib import Path

import pytest

import embstore_fl.errors
from embstore import errors
from embstore._engine.format.config import Config, Difference

WHERE = Path("/data/a.zarr")
CAUSE = OSError(28, "No space left on device")
ERRORS = [
    (errors.KeyFormatError("a:", "no class"), ValueError, {"key": "a:", "reason": "no class"}),
    (errors.DuplicateKeysError(["a:b"], path=WHERE), ValueError, {"keys": ("a:b",), "path": WHERE}),
    (errors.KeysExistError(["a:b"], path=WHERE), ValueError, {"keys": ("a:b",), "path": WHERE}),
    (errors.ShapeError("f", expected=(1,), found=(2,)), ValueError, {"field": "f", "expected": (1,), "found": (2,)}),
    (errors.DtypeError("f", expected="a", found="b"), TypeError, {"field": "f", "expected": "a", "found": "b"}),
    (errors.NonFiniteError("f", ["a:b"]), ValueError, {"field": "f", "keys": ("a:b",)}),
    (errors.NameRefusedError("1", "a digit"), ValueError, {"name": "1", "reason": "a digit"}),
    (errors.ConfigError("a", 1, "no"), ValueError, {"attribute": "a", "value": 1, "reason": "no"}),
    (errors.DeadRowsError("f", path=WHERE, dead=3), ValueError, {"field": "f", "path": WHERE, "dead": 3}),
    (errors.MissingKeysError(["a:b"], path=WHERE), KeyError, {"keys": ("a:b",), "path": WHERE}),
    (errors.RelabelledKeysError(["a:b"], path=WHERE, moved=["a:c"]), KeyError, {"keys": ("a:b",), "moved": ("a:c",)}),
    (errors.UnknownFieldError("f", ["g"], path=WHERE), KeyError, {"field": "f", "available": ("g",), "path": WHERE}),
    (errors.UnknownColumnError("f", ["g"], path=WHERE), KeyError, {"column": "f", "available": ("g",), "path": WHERE}),
    (errors.UnknownClassError(["f"], ["g"]), KeyError, {"class_names": ("f",), "available": ("g",)}),
    (errors.NotAStoreError(WHERE, "no"), FileNotFoundError, {"path": WHERE, "reason": "no"}),
    (
        errors.CacheMissError("no", config=Config(a=1), differences=[Difference("a", 1, 2)], path=WHERE),
        LookupError,
        {"config": Config(a=1), "differences": (Difference("a", 1, 2),), "path": WHERE},
    ),
    (errors.AmbiguousConfigError({"a": 1}, [WHERE], "b"), LookupError, {"wanted": {"a": 1}, "paths": (WHERE,)}),
    (
        errors.ConfigMismatchError(WHERE, [Difference("a", 1, 2)]),
        ValueError,
        {"path": WHERE, "differences": (Difference("a", 1, 2),)},
    ),
    *(
        (
            error("a:b", "mean", difference=0.5, tolerance=0.1, path=WHERE),
            RuntimeError,
            {"key": "a:b", "field": "mean", "difference": 0.5, "tolerance": 0.1, "path": WHERE},
        )
        for error in (errors.EncoderChangedError, errors.RandomEncoderError, errors.BatchDependentError)
    ),
    (errors.SourceError(WHERE, ["a: b"], "c"), ValueError, {"path": WHERE, "problems": ("a: b",), "hint": "c"}),
    (
        errors.ModalityError("a.wav", expected="text", found="audio", hint="use an encoder for audio"),
        ValueError,
        {"where": "a.wav", "expected": "text", "found": "audio"},
    ),
    (
        errors.DatasetMismatchError("a", ["b"], path=WHERE, reason="no"),
        ValueError,
        {"dataset": "a", "keys": ("b",), "path": WHERE, "reason": "no"},
    ),
    (
        errors.OptionsMismatchError(WHERE, [Difference("a", 1, 2)]),
        ValueError,
        {"path": WHERE, "differences": (Difference("a", 1, 2),)},
    ),
    (errors.CopyRefusedError(WHERE, WHERE, "no"), ValueError, {"path": WHERE, "url": WHERE, "reason": "no"}),
    (errors.StoreExistsError(WHERE), FileExistsError, {"path": WHERE}),
    (
        errors.UnsupportedFormatError(WHERE, expected="1", found="2"),
        ValueError,
        {"path": WHERE, "expected": "1", "found": "2"},
    ),
    (errors.StoreReplacedError(WHERE), OSError, {"path": WHERE}),
    (
        errors.StoreChangedError(WHERE, "no", expected=1, found=2),
        RuntimeError,
        {"path": WHERE, "expected": 1, "found": 2},
    ),
    (errors.CommitUncertainError(WHERE, "ab"), OSError, {"path": WHERE, "commit_id": "ab"}),
    (errors.ReadOnlyError(WHERE, "no"), PermissionError, {"path": WHERE, "reason": "no"}),
    (
        errors.StoreLockedError(WHERE, holder="p", timeout=1.5),
        TimeoutError,
        {"path": WHERE, "holder": "p", "timeout": 1.5},
    ),
    (errors.StorageFullError(WHERE, CAUSE), OSError, {"path": WHERE, "errno": 28}),
    (errors.EraseUnfinishedError(WHERE, "no"), OSError, {"path": WHERE, "reason": "no"}),
    (errors.CompactionRefusedError(WHERE, "no"), OSError, {"path": WHERE, "reason": "no"}),
    (errors.NetworkFileSystemError(WHERE, "nfs4"), OSError, {"path": WHERE, "filesystem": "nfs4"}),
    (errors.CorruptStoreError(WHERE, "no"), OSError, {"path": WHERE, "detail": "no"}),
    (errors.UnknownModelError("m", "t", ["a"]), ValueError, {"model": "m", "found": "t", "known": ("a",)}),
    (
        errors.IgnoredPartsError("m", "settings", ["alibi"]),
        ValueError,
        {"model": "m", "what": "settings", "names": ("alibi",)},
    ),
    (
        errors.MissingWeightsError("m", ["pooler.weight"], ["pooler_output"]),
        ValueError,
        {"model": "m", "weights": ("pooler.weight",), "fields": ("pooler_output",)},
    ),
    (errors.ModelFilesError(WHERE, "config.json"), FileNotFoundError, {"path": WHERE, "missing": "config.json"}),
    (
        errors.ModelNotFoundError(WHERE, "config.json", "offline"),
        FileNotFoundError,
        {"path": WHERE, "missing": "config.json", "reason": "offline"},
    ),
    (errors.WeightsChangedError(WHERE), RuntimeError, {"path": WHERE}),
    (errors.EmptySourceError(WHERE, "no"), ValueError, {"path": WHERE, "reason": "no"}),
    (errors.SampleError(WHERE, "no"), ValueError, {"path": WHERE, "reason": "no"}),
    (errors.DecodeError("no", path=WHERE), ValueError, {"path": WHERE, "reason": "no"}),
    (errors.EmptyViewError(WHERE, "plot"), ValueError, {"path": WHERE, "what": "plot"}),
    (
        errors.PartialResultError("view", (1, 4), path=WHERE),
        RuntimeError,
        {"what": "view", "shard": (1, 4), "path": WHERE},
    ),
    (
        errors.AlignmentError("audio", "key", ["a:b"], "no"),
        ValueError,
        {"view": "audio", "on": "key", "ids": ("a:b",), "reason": "no"},
    ),
    (errors.TooManyPairsError(0.5, 10), ValueError, {"threshold": 0.5, "most": 10}),
    (
        errors.RemoteError("s3://a/b", "no", attempts=4),
        OSError,
        {"url": "s3://a/b", "reason": "no", "attempts": 4},
    ),
    (
        errors.UnknownFormatError(WHERE, ".doc", ["npz"]),
        ValueError,
        {"path": WHERE, "found": ".doc", "known": ("npz",)},
    ),
    (errors.RefitError([Difference("a", 1, 2)]), ValueError, {"differences": (Difference("a", 1, 2),)}),
    (
        errors.LayoutError(WHERE, "per-key", "no"),
        ValueError,
        {"path": WHERE, "layout": "per-key", "reason": "no"},
    ),
    (
        errors.MissingLibraryError("h5py", "exchange", "to read it"),
        ImportError,
        {"library": "h5py", "extra": "exchange"},
    ),
    (errors.FileFormatError(WHERE, "no"), ValueError, {"path": WHERE, "reason": "no"}),
    (errors.UnsafeFileError(WHERE, "no"), ValueError, {"path": WHERE, "reason": "no"}),
    (
        errors.FieldMismatchError("f", path=WHERE, expected="a", found="b"),
        ValueError,
        {"field": "f", "path": WHERE, "expected": "a", "found": "b"},
    ),
]


ALL = [
    value
    for module in (errors, embstore_fl.errors)
    for value in vars(module).values()
    if inspect.isclass(value) and value.__module__ == module.__name__ and issubclass(value, errors.EmbstoreError)
    if value is not errors.EmbstoreError
]


@pytest.mark.parametrize(("error", "builtin", "facts"), ERRORS, ids=lambda value: type(value).__name__)
def test_facts_cross_to_another_process(error, builtin, facts):
    for found in (error, pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(found) is type(error)
        assert isinstance(found, builtin)
        assert isinstance(found, errors.EmbstoreError)
        assert str(found) == str(error) == found.message
        assert {name: getattr(found, name) for name in facts} == facts


def test_no_error_is_left_out_above():
    tested = {type(error) for error, _, _ in ERRORS} | {errors.EmbstoreError}
    assert tested == {v for v in vars(errors).values() if inspect.isclass(v) and issubclass(v, errors.EmbstoreError)}


HUGE = "é{}'" * 10_000
BY_TYPE = {
    "int": 10**300,
    "int | None": 10**300,
    "float": 1e300,
    "dict[str, float]": {HUGE: 1.0},
    "dict[str, Any]": {HUGE: HUGE},
}


def huge(name, annotation):
    """Return a fact of this type that is as long as may be; texts have braces, which are no part of a template."""
    if annotation.startswith("Items"):
        return [(HUGE,) * 20 if "object" in annotation else HUGE] * 2_000
    return BY_TYPE.get(annotation, HUGE)


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_a_message_is_short_whatever_the_facts_are(cls):
    types = {name: type_ for base in cls.__mro__ for name, type_ in vars(base).get("__annotations__", {}).items()}
    facts = {name: huge(name, types[name]) for name in cls._signature.parameters}
    own = cls is errors.StorageFullError
    error = cls(HUGE, OSError(facts["errno"], facts["reason"])) if own else cls(**facts)
    assert 10 < len(str(error)) < 8192
    for found in (error, pickle.loads(pickle.dumps(error))):
        assert str(found) == str(error) == found.message
        assert found.args == (found.message,)
        for name, fact in facts.items():
            assert getattr(found, name) == (tuple(fact) if isinstance(fact, list) else fact)
            assert f"`{name}`" in cls.__doc__, name


@pytest.mark.parametrize("facts", [{}, {"field": "f"}, {"field": "f", "expected": 1, "found": 2, "hnt": ""}])
def test_a_missing_or_misspelt_fact_is_refused(facts):
    with pytest.raises(TypeError, match="argument"):
        errors.DtypeError(**facts)


def test_a_long_fact_keeps_its_ends_and_a_long_list_its_number():
    text = str(errors.CorruptStoreError(Path("/data") / ("a" * 5000) / "c.0", "it is short"))
    assert text.startswith("/data/aaa")
    assert "aaa/c.0: it is short; embstore.verify lists" in text
    text = str(errors.KeyFormatError(tuple(range(20_000)), "it is a tuple"))
    assert text.startswith("(0, 1, 2, ")
    assert text.endswith(" 19999) is not a key 'file_id:class' or 'file_id': it is a tuple")
    names = [f"column_{i}" for i in range(20_000)]
    text = str(errors.UnknownColumnError("x", names))
    assert text.startswith("no column 'x'; columns: column_0, column_1, ")
    shown = text.count("column_")
    assert text.endswith(f" and {20_000 - shown:,} more")
    assert shown > 100


def test_an_error_lists_a_few_keys_and_counts_the_rest():
    text = str(errors.MissingKeysError([f"k{i}:c" for i in range(1000)], path=WHERE))
    assert "1000 key(s)" in text.replace(",", "")
    assert "990 more" in text
    assert len(text) < 400


def test_every_error_is_in_the_tree():
    tree = set(re.findall(r"\|?-- (\w+Error)", errors.__doc__)) | {"EmbstoreError"}
    assert {
        name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)
    } == tree

"""A store driven through its verbs, beside a plain dict that says what it should hold."""

import shutil
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import embstore
from embstore._engine.format.ragged import Padded
from embstore.errors import KeysExistError, MissingKeysError, StoreChangedError

FORMS = {
    "float32": ("float32", (8,), "auto"),
    "float32, read": ("float32", (8,), "never"),
    "float16": ("float16", (2, 8), "auto"),
    "float16, read": ("float16", (2, 8), "never"),
    "bfloat16": ("bfloat16", (16,), "auto"),
    "bfloat16, read": ("bfloat16", (16,), "never"),
    "unaligned": ("uint8", (4099,), "auto"),
    "unaligned, read": ("uint8", (4099,), "never"),
    "ragged": ("float32", (8,), "auto"),
    "ragged, read": ("float32", (8,), "never"),
}
KEYS = [f"f{i}:c{i % 3}" for i in range(24)]
key_lists = st.lists(st.sampled_from(KEYS), unique=True, max_size=12)


def assert_rows(found, expected):
    """Compare rows with what they should be: an array, or a list of arrays of different lengths."""
    if isinstance(found, Padded):
        assert found.lengths.tolist() == [len(row) for row in expected]
        within = np.arange(found.values.shape[1]) < found.lengths[:, None]
        if expected:
            np.testing.assert_array_equal(found.values[within], np.concatenate(expected))
        assert not found.values[~within].any()
    else:
        np.testing.assert_array_equal(found, expected)


class StoreMachine(RuleBasedStateMachine):
    dtype, shape, mapping, ragged = "float32", (8,), "auto", False

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="embstore-"))
        self.path = self.folder / "store.zarr"
        self.model = {}  # key -> (row, split), newest last
        self.scores = None
        self.counter = 0
        self.views = []  # (view, keys, rows): of selections made before
        spec = embstore.FieldSpec(shape=self.shape, dtype=self.dtype, ragged=self.ragged)
        self.store = embstore.open(
            self.path,
            "w-",
            config={"form": self.dtype},
            fields={"embedding": spec},
            columns={"split": "string"},
            chunk_bytes=4096,
            mapping=self.mapping,
        )
        self.reader = embstore.open(self.path, mapping=self.mapping)
        self.reader_model = {}

    def teardown(self):
        self.store.close()
        self.reader.close()
        assert embstore.verify(self.path).ok
        shutil.rmtree(self.folder)

    def rows(self, n):
        """Rows that are exact in every dtype, each different; of 0 to 4 tokens, and now and then 133, if ragged."""
        self.counter += n
        if self.ragged:
            counts = range(self.counter - n, self.counter)
            return [np.full((133 if i % 50 == 49 else i % 5, *self.shape), i % 113 + 1, self.dtype) for i in counts]
        numbers = np.arange(self.counter - n, self.counter).reshape(n, *(1 for _ in self.shape))
        return np.broadcast_to(numbers % 120, (n, *self.shape)).astype(
            "float32" if self.dtype == "bfloat16" else self.dtype
        )

    def append_to_store(self, keys, rows, splits, **options):
        casting = "same_kind" if self.dtype == "bfloat16" else "no"
        columns = {"split": splits}
        if self.scores is not None:
            columns["score"] = np.zeros(len(keys))
        return self.store.append(keys, rows, columns=columns, casting=casting, **options)

    def put(self, keys, rows, splits):
        for key, row, split in zip(keys, rows, splits, strict=True):
            self.model.pop(key, None)
            self.model[key] = (row, split)
            if self.scores is not None:
                self.scores[key] = 0.0

    @initialize()
    def fill(self):
        """More rows, or tokens, than a chunk has (128), so that the last one is partly filled."""
        keys = [f"base{i}:c{i % 3}" for i in range(60 if self.ragged else 150 if self.dtype != "uint8" else 3)]
        rows = self.rows(len(keys))
        self.append_to_store(keys, rows, ["base"] * len(keys))
        self.put(keys, rows, ["base"] * len(keys))

    @rule(keys=key_lists)
    def append(self, keys):
        rows, splits = self.rows(len(keys)), ["new"] * len(keys)
        stored = [key for key in keys if key in self.model]
        if stored:
            with pytest.raises(KeysExistError) as caught:
                self.append_to_store(keys, rows, splits)
            assert list(caught.value.keys) == stored
        else:
            assert self.append_to_store(keys, rows, splits).appended == len(keys)
            self.put(keys, rows, splits)

    @rule(keys=key_lists)
    def skip(self, keys):
        rows = self.rows(len(keys))
        fresh = [i for i, key in enumerate(keys) if key not in self.model]
        result = self.append_to_store(keys, rows, ["skip"] * len(keys), if_exists="skip")
        assert (result.appended, result.skipped) == (len(fresh), len(keys) - len(fresh))
        self.put([keys[i] for i in fresh], [rows[i] for i in fresh], ["skip"] * len(fresh))

    @rule(keys=key_lists)
    def replace(self, keys):
        rows = self.rows(len(keys))
        self.append_to_store(keys, rows, ["replace"] * len(keys), if_exists="replace")
        self.put(keys, rows, ["replace"] * len(keys))

    @rule(keys=key_lists, how=st.sampled_from(["delete", "erase"]))
    def remove(self, keys, how):
        present = [key for key in keys if key in self.model]
        if len(present) < len(keys):
            with pytest.raises(MissingKeysError):
                getattr(self.store, how)(keys)
        getattr(self.store, how)(present)
        for key in present:
            del self.model[key]
            if self.scores is not None:
                del self.scores[key]
        if how == "erase":
            self.views.append((self.store.select(), list(self.model), self.expected(self.model)))

    @rule(keys=st.lists(st.sampled_from(KEYS), max_size=3))
    def select_view(self, keys):
        keys = [key for key in keys if key in self.model]
        view = self.store.select(keys=keys) if keys else self.store.select()
        keys = keys or list(self.model)
        self.views.append((view, keys, self.expected(keys)))

    @rule()
    def compact(self):
        self.store.compact()
        assert self.store.snapshot.record.dead == 0

    @rule()
    def score(self):
        keys = list(self.model)
        values = np.arange(len(keys), dtype=np.float64)
        self.store.set_column("score", keys, values)
        self.scores = dict(zip(keys, values.tolist(), strict=True))

    @rule(check=st.sampled_from(["tail", "touched", "all"]))
    def reopen(self, check):
        self.store.close()
        self.store = embstore.open(self.path, "r+", config={"form": self.dtype}, mapping=self.mapping, check=check)
        self.views = []

    @rule()
    def refresh_reader(self):
        self.reader.refresh()
        self.reader_model = {key: row.copy() for key, (row, _) in self.model.items()}

    def expected(self, keys):
        rows = [self.model[key][0] for key in keys]
        if self.ragged:
            return rows
        return np.stack(rows) if rows else np.empty((0, *self.shape))

    @invariant()
    def holds_what_the_model_holds(self):
        keys = list(self.model)
        assert list(self.store) == keys
        assert len(self.store) == len(keys)
        assert_rows(self.store[keys], self.expected(keys))
        assert_rows(self.store.select().to_numpy(), self.expected(keys))
        assert self.store.missing(KEYS) == [key for key in KEYS if key not in self.model]
        if keys:
            assert self.store.select().column("split").tolist() == [self.model[key][1] for key in keys]
            np.testing.assert_array_equal(self.store[keys[-1]], self.model[keys[-1]][0])

    @invariant()
    def columns_hold_what_was_set(self):
        if self.scores is not None and self.model:
            assert self.store.select().column("score").tolist() == [self.scores[key] for key in self.model]

    @invariant()
    def selects_by_class(self):
        keys = [key for key in self.model if key.endswith(":c1")]
        if keys:
            assert self.store.select(classes="c1").keys == keys

    @invariant()
    def views_stay_valid_or_say_so(self):
        for view, keys, rows in self.views:
            try:
                found = view.to_numpy()
                found_keys = view.keys
            except StoreChangedError:
                continue
            assert_rows(found, rows)
            assert found_keys == keys
        self.views = self.views[-4:]

    @precondition(lambda self: self.reader_model)
    @invariant()
    def reader_keeps_its_commit(self):
        keys = list(self.reader_model)
        try:
            found = self.reader[keys]
        except (StoreChangedError, embstore.errors.StoreReplacedError):
            self.reader.refresh()
            self.reader_model = {key: row.copy() for key, (row, _) in self.model.items()}
            return
        mapped = [self.reader_model[key] for key in keys]
        assert_rows(found, mapped if self.ragged else np.stack(mapped))


def machine(form):
    dtype, shape, mapping = FORMS[form]
    ragged = form.startswith("ragged")
    return type("StoreMachine", (StoreMachine,), {"dtype": dtype, "shape": shape, "mapping": mapping, "ragged": ragged})


@pytest.mark.parametrize("form", FORMS)
def test_agrees_with_a_dict(form):
    from hypothesis.stateful import run_state_machine_as_test

    # Without the shrink phase: it took minutes to make a failure little shorter.
    phases = [phase for phase in hypothesis.Phase if phase is not hypothesis.Phase.shrink]
    run_state_machine_as_test(machine(form), settings=hypothesis.settings(phases=phases))

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
from embstore.errors import KeysExistError, MissingKeysError, StoreChangedError, StoreReplacedError
from tests._helpers.kinds import assert_rows

FORMS = {
    "float32": {"shape": (8,)},
    "float16": {"shape": (2, 8), "dtype": "float16"},
    "bfloat16": {"shape": (16,), "dtype": "bfloat16"},
    "unaligned": {"shape": (4099,), "dtype": "uint8"},
    "ragged": {"shape": (8,), "ragged": True},
    "ragged bfloat16": {"shape": (8,), "dtype": "bfloat16", "ragged": True},
    "ragged numbers": {"shape": (), "dtype": "int64", "ragged": True},
    "zstd": {"shape": (8,)},
    "blosc": {"shape": (2, 8), "dtype": "float16"},
}
COMPRESSED = ("zstd", "blosc")
KEYS = [f"f{i}:c{i % 3}" for i in range(24)]
key_lists = st.lists(st.sampled_from(KEYS), unique=True, max_size=12)


class StoreMachine(RuleBasedStateMachine):
    form = "float32"

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="embstore-"))
        self.path = self.folder / "store.zarr"
        self.model = {}  # key -> (row, split), newest last
        self.scores = None
        self.counter = 0
        self.views = []  # (view, keys, rows): of selections made before
        self.reader_model = {}
        self.spec = embstore.FieldSpec(**FORMS[self.form])
        self.dtype = "float32" if self.spec.dtype == "bfloat16" else self.spec.dtype

    def teardown(self):
        self.store.close()
        self.reader.close()
        assert embstore.verify(self.path).ok
        shutil.rmtree(self.folder)

    def rows(self, n):
        """Rows that are exact in every dtype, each different; of 0 to 4 tokens, and now and then 133, if ragged."""
        self.counter += n
        numbers = range(self.counter - n, self.counter)
        if self.spec.ragged:
            shapes = [(133 if i % 50 == 49 else i % 5, *self.spec.shape) for i in numbers]
        else:
            shapes = [self.spec.shape] * n
        return [np.full(shape, i % 113 + 1, self.dtype) for i, shape in zip(numbers, shapes, strict=True)]

    def given(self, rows):
        """Return rows as `append` takes them."""
        return rows if self.spec.ragged or not rows else np.stack(rows)

    def values(self, rows):
        """Return rows for each field. The second one holds the same as the first."""
        return dict.fromkeys(self.store.fields, self.given(rows) if rows else np.empty((0, *self.one), self.dtype))

    @property
    def one(self):
        return (0, *self.spec.shape) if self.spec.ragged else self.spec.shape

    def columns(self, splits):
        return {"split": splits} | ({} if self.scores is None else {"score": np.zeros(len(splits))})

    def append_to_store(self, keys, rows, splits, **options):
        return self.store.append(keys, self.values(rows), columns=self.columns(splits), casting="same_kind", **options)

    def put(self, keys, rows, splits):
        for key, row, split in zip(keys, rows, splits, strict=True):
            self.model.pop(key, None)
            self.model[key] = (row, split)
            if self.scores is not None:
                self.scores[key] = 0.0

    @initialize(mapping=st.sampled_from(["auto", "never"]))
    def fill(self, mapping):
        """More rows, or tokens, than a chunk has (128), so that the last one is partly filled."""
        self.mapping = mapping
        self.store = embstore.open(
            self.path,
            "w-",
            config={"form": self.form},
            fields={"embedding": self.spec},
            columns={"split": "string"},
            chunk_bytes=4096,
            mapping=mapping,
            compression=self.form if self.form in COMPRESSED else None,
        )
        self.reader = embstore.open(self.path, mapping=mapping)
        keys = [f"base{i}:c{i % 3}" for i in range(60 if self.spec.ragged else 3 if self.form == "unaligned" else 150)]
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

    @rule(keys=key_lists)
    def write(self, keys):
        rows = self.rows(len(keys))
        with self.store.writer(if_exists="replace", casting="same_kind", interval=1000) as writer:
            for key, row in zip(keys, rows, strict=True):
                columns = {name: values[0] for name, values in self.columns(["written"]).items()}
                writer.add(key, dict.fromkeys(self.store.fields, row), columns=columns)
        self.put(keys, rows, ["written"] * len(keys))

    @precondition(lambda self: len(self.store.fields) == 1)
    @rule()
    def add_field(self):
        keys = list(self.model)[::-1]
        values = self.given([self.model[key][0] for key in keys]) if keys else np.empty((0, *self.one), self.dtype)
        self.store.add_field("more", keys, values, spec=self.spec, casting="same_kind")

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
        self.store = embstore.open(self.path, "r+", config={"form": self.form}, mapping=self.mapping, check=check)
        self.views = []

    @rule()
    def refresh_reader(self):
        self.reader.refresh()
        self.reader_model = {key: row.copy() for key, (row, _) in self.model.items()}

    def expected(self, keys):
        return [self.model[key][0] for key in keys]

    @invariant()
    def holds_what_the_model_holds(self):
        keys = list(self.model)
        expected = self.expected(keys)
        assert list(self.store) == keys
        assert len(self.store) == len(keys)
        assert self.store.missing(KEYS) == [key for key in KEYS if key not in self.model]
        for name in self.store.fields:
            assert_rows(self.store.fetch(keys, name), expected)
            assert_rows(self.store.select().to_numpy(name), expected)
            assert_rows(self.store.take(self.store.rows[::-3], name), expected[::-3])
            if self.spec.ragged:
                assert_rows(self.store.select().to_ragged(name), expected)
            if self.spec.dtype != "bfloat16":
                whole = self.store.array(name, dead="include")
                assert_rows([whole[int(row)] for row in self.store.rows[::7]], expected[::7])
        if keys:
            assert self.store.select().column("split").tolist() == [self.model[key][1] for key in keys]
            assert_rows(self.store.fetch([keys[-1]], "embedding"), expected[-1:])

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
                found = view.to_numpy("embedding")
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
            found = self.reader.fetch(keys, "embedding")
        except (StoreChangedError, StoreReplacedError):
            self.refresh_reader()
        else:
            assert_rows(found, list(self.reader_model.values()))


@pytest.mark.parametrize("form", FORMS)
def test_agrees_with_a_dict(form):
    from hypothesis.stateful import run_state_machine_as_test

    # Without the shrink phase: it took minutes to make a failure little shorter.
    phases = [phase for phase in hypothesis.Phase if phase is not hypothesis.Phase.shrink]
    machine = type("StoreMachine", (StoreMachine,), {"form": form})
    run_state_machine_as_test(machine, settings=hypothesis.settings(phases=phases))

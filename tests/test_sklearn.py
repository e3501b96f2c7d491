"""EmbeddingTransformer in scikit-learn: Pipeline, GridSearchCV, clone, pickle, set_output."""

import pickle

import numpy as np
import pytest

import embstore
from embstore import FieldSpec, errors
from embstore.encoders import FunctionEncoder
from tests._helpers.crash import python

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer

from embstore.sklearn import EmbeddingTransformer

SEEN = []
WORDS = ["cat", "dog", "owl", "barks", "purrs", "hoots"]


def letters(texts):
    """Return the counts of letters: the same for a text in any batch."""
    return np.array([[text.count(chr(97 + i)) for i in range(26)] for text in texts], np.float32)


def counted(texts):
    SEEN.extend(texts)
    return letters(texts)


def make(version=1, **options):
    SEEN.clear()
    return FunctionEncoder(counted, config={"encoder": "letters", "version": version}, **options)


def texts_of(n):
    rng = np.random.default_rng(0)
    texts = [f"{' '.join(rng.choice(WORDS, 4))} {i}" for i in range(n)]
    return texts, np.array(["cat" in text for text in texts])


def test_a_grid_search_encodes_each_text_once_and_scores_as_without_a_cache(tmp_path):
    texts, labels = texts_of(2000)
    grid = {"model__C": [0.01, 1.0]}
    scores = []
    for step in (EmbeddingTransformer(make(), tmp_path), FunctionTransformer(letters)):
        pipe = Pipeline([("emb", step), ("model", LogisticRegression(max_iter=50))])
        search = GridSearchCV(pipe, grid, cv=5).fit(texts, labels)
        scores.append((search.cv_results_["mean_test_score"], search.predict(texts[:50])))
    assert len(SEEN) == len(set(SEEN)) == 2000
    for cached, plain in zip(*scores, strict=True):
        np.testing.assert_array_equal(cached, plain)


def as_frame(texts):
    return pytest.importorskip("pandas").DataFrame({"text": texts})


FORMS = {
    "list": list,
    "tuple": tuple,
    "array": np.array,
    "objects": lambda texts: np.array(texts, object),
    "column": lambda texts: np.array(texts, object)[:, None],
    "Series": lambda texts: as_frame(texts)["text"],
    "strings": lambda texts: as_frame(texts)["text"].astype("string"),
    "DataFrame": as_frame,
}


@pytest.mark.parametrize("form", FORMS)
def test_texts_in_each_form(tmp_path, form):
    texts = ["a cat", "", "a dog", "a cat"]
    step = EmbeddingTransformer(make(), tmp_path)
    np.testing.assert_array_equal(step.fit_transform(FORMS[form](texts)), letters(texts))
    assert sorted(SEEN) == sorted(set(texts))
    np.testing.assert_array_equal(step.fit(FORMS[form](texts)).transform(FORMS[form](texts[1:])), letters(texts[1:]))
    assert len(SEEN) == 3


def test_set_output_and_names(tmp_path):
    pd = pytest.importorskip("pandas")
    step = EmbeddingTransformer(make(), tmp_path).set_output(transform="pandas")
    frame = as_frame(["a cat", "a dog"]).set_index(pd.Index([7, 3]))
    for one in (step, clone(step)):
        found = one.fit_transform(frame)
        assert list(found.columns) == [f"embedding{i}" for i in range(26)] == list(one.get_feature_names_out())
        assert list(found.index) == [7, 3]


def test_clones_share_the_encoder_and_pickles_serve_the_rows(tmp_path):
    step = EmbeddingTransformer(make(), tmp_path, batch_size=7).fit(["a cat"])
    assert clone(step).encoder is step.encoder
    assert clone(step).get_params() == step.get_params()
    again = pickle.loads(pickle.dumps(make_pipeline(step))).steps[0][1]
    np.testing.assert_array_equal(again.transform(["a cat"]), letters(["a cat"]))
    assert SEEN == ["a cat"]
    with pytest.raises(NotFittedError):
        clone(step).transform(["a cat"])


def test_an_encoder_that_changed_after_fit(tmp_path):
    step = EmbeddingTransformer(make(), tmp_path).fit(["a cat"])
    step.set_params(encoder=make(version=2))
    with pytest.raises(errors.RefitError, match=r"version: expected 1, found 2; call fit again") as caught:
        step.transform(["a cat"])
    assert [one.name for one in caught.value.differences] == ["version"]
    assert SEEN == []
    step.fit(["a cat"]).transform(["a cat"])
    assert SEEN == ["a cat"]


def test_fields_are_chosen_and_flattened(tmp_path):
    fields = {
        "flat": FieldSpec(shape=(2,)),
        "deep": FieldSpec(shape=(2, 3)),
        "ragged": FieldSpec(shape=(2,), ragged=True),
    }

    def several(texts):
        deep = np.array([len(text) + np.arange(6) for text in texts], np.float32).reshape(-1, 2, 3)
        return {"flat": deep[:, :, 0], "deep": deep, "ragged": [np.ones((len(text), 2), np.float32) for text in texts]}

    encoder = FunctionEncoder(several, config={"encoder": "several"}, fields=fields)
    step = EmbeddingTransformer(encoder, tmp_path, field="deep")
    assert step.fit_transform(["a", "bb"]).tolist() == [[1, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6, 7]]
    assert step.get_feature_names_out()[-1] == "deep5"
    assert step.set_params(field="flat").fit_transform(["a", "bb"]).shape == (2, 2)
    with pytest.raises(errors.ShapeError, match="ragged rows; pool it"):
        step.set_params(field="ragged").fit_transform(["a", "bb"])


@pytest.mark.parametrize(
    ("X", "error", "text"),
    [
        ("a cat", TypeError, "pass a list"),
        ([], ValueError, "at least one sample"),
        (np.array([["a", "b"]], object), ValueError, "one column of samples, found 2"),
        (["a", "\ud800"], errors.SampleError, "not valid Unicode"),
        (["a", object()], TypeError, "no digest"),
    ],
    ids=["a text", "none", "two columns", "no Unicode", "an object"],
)
def test_samples_that_make_no_rows(tmp_path, X, error, text):
    with pytest.raises(error, match=text):
        EmbeddingTransformer(make(), tmp_path).fit(["a"]).fit_transform(X)


def test_a_pretrained_encoder_that_is_loaded_can_be_pickled(tmp_path):
    pytest.importorskip("transformers")
    from tests._helpers import tiny_models

    tiny_models.text(tmp_path / "bert")
    encoder = embstore.from_pretrained(tmp_path / "bert", fields=["mean"])
    step = EmbeddingTransformer(encoder, tmp_path / "cache")
    rows = step.fit_transform(["a cat", "a dog"])
    again = pickle.loads(pickle.dumps(step))
    np.testing.assert_array_equal(again.transform(["a dog", "a cat"]), rows[::-1])
    assert again.transform(["an owl"]).shape == rows[:1].shape


def test_torch_is_not_imported_for_rows_that_are_stored(tmp_path):
    code = f"""
import sys, numpy as np, embstore
from embstore.sklearn import EmbeddingTransformer
encoder = embstore.encoders.FunctionEncoder(lambda texts: np.ones((len(texts), 2), "f4"), config={{"encoder": "x"}})
EmbeddingTransformer(encoder, {str(tmp_path)!r}).fit_transform(["a", "b"])
assert "torch" not in sys.modules
"""
    python(code)

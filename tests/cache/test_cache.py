"""The cache: one store a config; why a lookup hits or misses; what it does with what is broken."""

import functools
import logging
import os

import numpy as np
import pytest

import embstore
from embstore import errors
from embstore._engine.format.config import canonical_json, flattened
from embstore.encoders.defaults import _table
from embstore.encoders.model_files import plain
from tests._helpers.crash import as_another_user, end_all, leftovers, needs_root, start_together

AST = {
    "encoder": {"id": "MIT/ast-finetuned_audioset", "revision": "f826b80"},
    "dataset": "VEGAS",
    "sample_rate": 16_000,
    "duration": 5,
}
KEYS = ["1:dog", "2:dog", "3:cat"]
ROWS = np.arange(9, dtype=np.float32).reshape(3, 3)


def fill(cache, config, keys=KEYS, **options):
    with cache.open(config, "a") as store:
        store.append(keys, ROWS[: len(keys)], **options)
        return store.path


def messages(caplog, level):
    return [r.getMessage() for r in caplog.records if r.name == "embstore" and r.levelno == level]


# -- open -------------------------------------------------------------------------------------


def test_a_store_is_made_once_and_found_again(cache):
    path = fill(cache, AST)
    assert path == cache.path_of(AST)
    with cache.open(AST) as store:
        assert not store.writable
        np.testing.assert_array_equal(store[KEYS], ROWS)
        with pytest.raises(errors.ReadOnlyError):
            store.append(["4:dog"], ROWS[:1])
    for mode in ("r+", "a"):
        with cache.open(AST, mode) as store:
            assert store.writable
            assert store.path == path
            assert len(store) == 3
    for mode in ("w-", "x"):
        with pytest.raises(errors.StoreExistsError):
            cache.open(AST, mode)
    assert len(cache) == 1


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_miss_says_how_the_nearest_differs(cache, mode):
    fill(cache, {**AST, "sample_rate": 8_000, "duration": 1, "extra": True})
    fill(cache, {**AST, "duration": 10})
    with pytest.raises(errors.CacheMissError, match="duration: expected 5, found 10") as caught:
        cache.open(AST, mode)
    assert isinstance(caught.value, LookupError)
    assert [(d.name, d.expected, d.found) for d in caught.value.differences] == [("duration", 5, 10)]
    assert caught.value.config == AST
    assert caught.value.path == cache.path
    assert len(cache) == 2


def test_options_reach_the_stores(tmp_path):
    cache = embstore.Cache(tmp_path / "c", mapping="never")
    with cache.open(AST, "a", chunk_bytes=4096, provenance={"host": "here"}) as store:
        assert store.snapshot.mapping == "never"
        assert store.snapshot.record.provenance["host"] == "here"
    assert cache.open(AST).snapshot.mapping == "never"
    assert cache.open(AST, mapping="auto").snapshot.mapping == "auto"


@pytest.mark.parametrize("mode", ["w", "rb", ""])
def test_another_mode_is_refused_and_makes_nothing(cache, mode):
    with pytest.raises(ValueError, match="expected mode"):
        cache.open(AST, mode)
    assert not cache.path.exists()


def test_two_processes_make_one_store(cache):
    for round_ in range(5):
        config = {**AST, "round": round_}

        def work(worker, config=config):
            with cache.open(config, "a") as store:
                store.append([f"{worker}:c"], np.full((1, 3), worker, np.float32))

        assert end_all(start_together([functools.partial(work, worker) for worker in range(4)])) == [0] * 4
        store = cache.open(config)
        assert sorted(store) == ["0:c", "1:c", "2:c", "3:c"]
        assert [store[f"{worker}:c"][0] for worker in range(4)] == [0, 1, 2, 3]
        assert embstore.verify(store.path).ok
        assert leftovers(store.path) == []
    assert len(cache) == 5


def test_a_store_under_a_name_that_is_not_its_own(cache):
    """A folder renamed by hand, or a fingerprint that begins alike, is no hit."""
    other = {**AST, "duration": 10}
    fill(cache, other).rename(cache.path_of(AST))
    for attempt in (lambda: cache.open(AST), lambda: cache.open(AST, "a"), lambda: cache.lookup(AST, KEYS)):
        with pytest.raises(errors.ConfigMismatchError) as caught:
            attempt()
        assert [d.name for d in caught.value.differences] == ["duration"]


# -- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoder", "slug"),
    [
        ("MIT/ast-finetuned_audioset", "ast-finetuned-audioset"),
        ({"id": "openai/CLIP ViT-B/32", "revision": "x"}, "32"),
        ({"name": "all-MiniLM-L6-v2"}, "all-minilm-l6-v2"),
        ({"revision": "x"}, "store"),
        ("../../etc/passwd", "passwd"),
        ("..", "store"),
        ("модель", "store"),
        ("x" * 300, "x" * 48),
    ],
)
def test_a_name_is_a_slug_and_a_fingerprint(cache, encoder, slug):
    config = embstore.Config(encoder=encoder)
    path = cache.path_of(config)
    assert path.name == f"{slug}-{config.fingerprint[:16]}.zarr"
    assert path.parent == cache.path
    assert fill(cache, config) == path


def test_a_config_without_an_encoder_has_a_name(cache):
    assert cache.path_of({"a": 1}).name.startswith("store-")


def test_names_never_collide(cache):
    """Where a name is made by replacing characters, a_b, a/b and a-b would share one store."""
    names = ["a_b/c", "a/b_c", "a/b/c", "a_b_c", "a-b-c", "a b c", "A/B/C", "c", "C"]
    for i, name in enumerate(names):
        fill(cache, {"encoder": name}, keys=[f"{i}:c"])
    assert len({cache.path_of({"encoder": name}) for name in names}) == len(names)
    for i, name in enumerate(names):
        assert list(cache.open({"encoder": name})) == [f"{i}:c"]


def test_numbers_are_what_they_mean(cache):
    fill(cache, AST)
    hits = [
        {**AST, "duration": 5.0},
        {**AST, "duration": np.float32(5), "sample_rate": np.int64(16_000)},
        dict(reversed(AST.items())),
        embstore.Config(AST),
    ]
    for config in hits:
        assert cache.lookup(config, KEYS).hit
        assert len(cache.open(config)) == 3
    for config in ({**AST, "duration": "5"}, {**AST, "duration": 5.000001}, {**AST, "duration": True}):
        assert not cache.lookup(config, KEYS).hit
    fill(cache, {"flag": 1})
    assert not cache.lookup({"flag": True}).hit


# -- find -------------------------------------------------------------------------------------


def test_find_by_attributes(cache):
    a = fill(cache, AST)
    b = fill(cache, {**AST, "duration": 10})
    c = fill(cache, {"encoder": {"id": "clip"}, "dataset": "VEGAS", "a.b": 1, "list": [1, 2]})

    def paths(*attributes, **more):
        return {entry.path for entry in cache.find(*attributes, **more)}

    assert paths() == {a, b, c}
    assert paths(dataset="VEGAS") == {a, b, c}
    assert paths(dataset="VEGAS", duration=10.0) == {b}
    assert paths({"encoder.id": "MIT/ast-finetuned_audioset"}) == {a, b}
    assert paths({"encoder.id": "clip"}, dataset="VEGAS") == {c}
    assert paths(encoder={"id": "clip"}) == {c}
    assert paths(encoder=AST["encoder"]) == {a, b}
    assert paths({"a.b": 1}) == {c}
    assert paths(list=(1, 2)) == {c}
    for none in ({"encoder.id": "other"}, {"encoder.id.more": 1}, {"duration": None}, {"nothing": None}, {"list": [1]}):
        assert paths(none) == set(), none
    entry = cache.find(duration=5)[0]
    assert embstore.open(entry).path == entry.path
    assert (entry.path, entry.config, entry.rows) == (a, AST, 3)


def test_an_entry_counts_live_rows(cache):
    fill(cache, AST)
    with cache.open(AST, "r+") as store:
        store.delete(KEYS[:1])
    assert [entry.rows for entry in cache.entries()] == [2]


def test_find_one(cache):
    a = fill(cache, AST)
    b = fill(cache, {**AST, "duration": 10, "encoder": {**AST["encoder"], "revision": "main"}})
    with cache.find_one(duration=5) as store:
        assert store.path == a
        assert not store.writable
    with cache.find_one({"encoder.revision": "main"}, mode="r+") as store:
        assert store.path == b
        assert store.writable
    with pytest.raises(errors.AmbiguousConfigError) as caught:
        cache.find_one(dataset="VEGAS")
    assert isinstance(caught.value, LookupError)
    assert set(caught.value.paths) == {a, b}
    assert caught.value.wanted == {"dataset": "VEGAS"}
    for told in (str(a), str(b), "duration", "encoder.revision"):
        assert told in str(caught.value)
    assert "sample_rate" not in str(caught.value)
    with pytest.raises(errors.CacheMissError, match="sample_rate") as caught:
        cache.find_one(sample_rate=1)
    assert caught.value.config == {"sample_rate": 1}
    assert caught.value.path == cache.path


@pytest.mark.parametrize("how", ["iterated", "found", "stats"])
def test_what_differs_between_the_stores_of_a_model(cache, how):
    configs = [
        {**AST, "duration": 5},
        {**AST, "duration": 10, "more": {"a": 1}},
        {**AST, "duration": 5.0, "dataset": "ESC-50"},
        {"encoder": "clip", "dataset": "VEGAS"},
    ]
    expected = [
        {"dataset": "VEGAS", "duration": 5},
        {"dataset": "VEGAS", "duration": 10, "more.a": 1},
        {"dataset": "ESC-50", "duration": 5},
        {},
    ]
    for config in configs:
        fill(cache, config)
    found = {"iterated": lambda: list(cache), "found": cache.find, "stats": cache.stats}[how]()
    assert [dict(next(e for e in found if e.config == config).differs) for config in configs] == expected
    for own, config in zip(expected[:3], configs[:3], strict=True):
        with cache.find_one({"encoder.id": AST["encoder"]["id"], **own}) as store:
            assert store.config == config


def test_a_miss_of_attributes_says_what_is_stored(cache):
    fill(cache, AST)
    fill(cache, {**AST, "duration": 10})
    with pytest.raises(errors.CacheMissError, match=r"duration is 10, 5; no store has encoder\.name"):
        cache.find_one({"duration": 7, "encoder.name": "x"})


BERT = {
    "encoder": {"id": "m", "type": "bert", "settings": {"hidden_size": 384, "hidden_act": "gelu", "use_cache": True}},
    "preprocessing": {"version": 1, "max_tokens": 256},
    "compute_dtype": "float32",
}
VIT = {
    "encoder": {"id": "v", "type": "vit", "settings": {"hidden_size": 768, "qkv_bias": True, "hidden_act": "quick"}},
    "preprocessing": {"version": 1, "mode": "RGB", "processor": {"type": "ViTImageProcessor", "do_resize": True}},
    "compute_dtype": "bfloat16",
}


def test_defaults_of_the_encoders_class_are_left_out_for_people(cache):
    """The config has them all."""
    fill(cache, VIT)
    words = "encoder.id='v', encoder.type='vit', encoder.settings.hidden_act='quick', "
    words += "preprocessing.processor.type='ViTImageProcessor', compute_dtype='bfloat16'"
    assert repr(cache.open(VIT)).endswith(words)
    told = ["encoder.id", "encoder.type", "encoder.settings.hidden_size", "encoder.settings.hidden_act"]
    told += ["preprocessing.max_tokens", "preprocessing.processor", "compute_dtype"]
    found = cache.lookup(BERT)
    assert [text.split(":")[0] for text in found.reason.split("differs in ")[1].split("; ")] == told
    assert len(found.differences) == 10
    explained = str(embstore.why(BERT, cache))
    assert "qkv_bias" not in explained
    assert "and in 3 settings that are at their defaults on both sides" in explained
    assert "qkv_bias" in str(embstore.why(BERT, cache, settings="all"))


def test_the_defaults_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    for name, own in _table().items():
        if name != "embstore" and not name.endswith(("Processor", "Extractor")):
            found = flattened(plain(transformers.AutoConfig.for_model(name).to_dict()))
            wrong = {
                n: (v, found[n]) for n, v in own.items() if n in found and canonical_json(found[n]) != canonical_json(v)
            }
            assert wrong == {}, name
            assert len(own.keys() & found.keys()) > 8, name


# -- lookup -----------------------------------------------------------------------------------


def test_lookup_of_a_config(cache):
    fill(cache, AST)
    found = cache.lookup(AST)
    assert found.hit
    assert found.coverage == 1
    assert found.reason == "hit: 3 rows"
    assert found.path == cache.path_of(AST)
    missed = cache.lookup({**AST, "duration": 10}, KEYS)
    assert not missed.hit
    assert missed.coverage == 0
    assert missed.missing == tuple(KEYS)
    assert missed.reason == "miss: no store has this config; the nearest differs in duration: expected 10, found 5"
    assert missed.nearest.path == found.path
    assert [d.name for d in missed.differences] == ["duration"]
    assert missed.path == cache.path_of({**AST, "duration": 10})
    assert not missed.path.exists()


def test_lookup_of_keys(cache):
    fill(cache, AST)
    hit = cache.lookup(AST, [KEYS[2], KEYS[0]])
    assert hit.hit
    assert hit.stored == (KEYS[2], KEYS[0])
    assert hit.missing == hit.stale == ()
    assert hit.reason == "hit: 2 stored, 0 missing, 0 stale"
    partial = cache.lookup(AST, ["new:dog", KEYS[0], embstore.Key("new", "cat"), KEYS[1]])
    assert not partial.hit
    assert partial.stored == (KEYS[0], KEYS[1])
    assert partial.missing == ("new:dog", "new:cat")
    assert partial.coverage == 0.5
    assert partial.reason == "partial: 2 stored, 2 missing, 0 stale"
    miss = cache.lookup(AST, ["new:dog"])
    assert not miss.hit
    assert miss.reason == "miss: 0 stored, 1 missing, 0 stale"
    with pytest.raises(errors.KeyFormatError):
        cache.lookup(AST, [":no file_id"])


def test_lookup_of_a_deleted_key(cache):
    fill(cache, AST)
    with cache.open(AST, "r+") as store:
        store.delete(KEYS[:1])
    assert cache.lookup(AST, KEYS).missing == (KEYS[0],)


def test_lookup_by_digests(cache):
    fill(cache, AST, columns={"source_digest": ["a", "b", "c"]})
    assert cache.lookup(AST, KEYS).hit  # nothing was said of their content
    assert cache.lookup(AST, KEYS, digests=dict(zip(KEYS, "abc", strict=True))).hit
    found = cache.lookup(AST, [*KEYS, "new:dog"], digests={**dict(zip(KEYS, "aXc", strict=True)), "new:dog": "d"})
    assert not found.hit
    assert found.stored == (KEYS[0], KEYS[2])
    assert found.stale == (KEYS[1],)
    assert found.missing == ("new:dog",)
    assert found.reason == "partial: 2 stored, 1 missing, 1 stale"
    stale = cache.lookup(AST, KEYS[:1], digests={KEYS[0]: "X"})
    assert not stale.hit
    assert stale.reason == "miss: 0 stored, 0 missing, 1 stale"


def test_rows_of_unknown_content_are_no_hit(cache):
    """A store without digests can't say that its rows are of this content."""
    fill(cache, AST)
    found = cache.lookup(AST, KEYS, digests=dict.fromkeys(KEYS, "a"))
    assert not found.hit
    assert found.stale == tuple(KEYS)


def test_an_empty_store_is_no_coverage(cache):
    cache.open(AST, "a").close()
    found = cache.lookup(AST, KEYS)
    assert not found.hit
    assert found.missing == tuple(KEYS)


def test_nearest_differs_least(cache):
    far = fill(cache, {"encoder": "x"})
    near = fill(cache, {**AST, "encoder": {**AST["encoder"], "revision": "main"}})
    entry, differences = cache.nearest(AST)
    assert entry.path == near
    assert [(d.name, d.expected, d.found) for d in differences] == [("encoder.revision", "f826b80", "main")]
    entry, differences = cache.nearest({"encoder": "x"})
    assert entry.path == far
    assert differences == ()


def test_making_a_store_logs_how_it_differs(cache, caplog):
    caplog.set_level(logging.INFO, "embstore")
    fill(cache, AST)
    assert "is empty" in " ".join(messages(caplog, logging.INFO))
    caplog.clear()
    fill(cache, {**AST, "duration": 10})
    (said,) = [text for text in messages(caplog, logging.INFO) if "new store" in text]
    assert str(cache.path_of({**AST, "duration": 10})) in said
    assert "duration: expected 10, found 5" in said
    caplog.clear()
    fill(cache, AST, keys=["4:dog"])
    assert not [text for text in messages(caplog, logging.INFO) if "new store" in text]


# -- what is not as it should be --------------------------------------------------------------


def test_a_folder_that_is_not_there(cache):
    assert cache.entries() == []
    assert cache.find(duration=5) == []
    assert len(cache) == 0
    assert cache.nearest(AST) == (None, ())
    found = cache.lookup(AST, KEYS)
    assert not found.hit
    assert found.missing == tuple(KEYS)
    assert found.nearest is None
    assert found.reason == f"miss: no store has this config; {cache.path} is empty"
    with pytest.raises(errors.CacheMissError):
        cache.open(AST)
    with pytest.raises(errors.CacheMissError):
        cache.find_one(duration=5)
    assert "0 store" in repr(cache)
    assert not cache.path.exists()


def _garbled(path):
    (path / "zarr.json").write_text("{")


def _flipped(path):
    text = (path / "zarr.json").read_bytes()
    assert b"16000" in text
    (path / "zarr.json").write_bytes(text.replace(b"16000", b"16001"))


def _without_metadata(path):
    (path / "zarr.json").unlink()


def _newer(path):
    text = (path / "zarr.json").read_text()
    assert '"format":1' in text.replace(" ", "")
    (path / "zarr.json").write_text(text.replace('"format":1', '"format":99').replace('"format": 1', '"format": 99'))


def _emptied(path):
    for file in sorted(path.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()


@pytest.mark.parametrize("harm", [_garbled, _flipped, _without_metadata, _newer, _emptied])
def test_a_broken_store_is_left_out_and_warned_of(cache, caplog, harm):
    broken = fill(cache, AST)
    good = fill(cache, {**AST, "duration": 10})
    harm(broken)
    with caplog.at_level(logging.WARNING, "embstore"):
        assert [entry.path for entry in cache.entries()] == [good]
    assert any(str(broken) in text for text in messages(caplog, logging.WARNING))
    assert cache.find_one(dataset="VEGAS").path == good
    assert cache.lookup({**AST, "duration": 11}).nearest.path == good
    # Asked for by its config, it is an error: neither a miss, nor made anew over what may be salvaged.
    for mode in ("r", "a"):
        with pytest.raises((errors.CorruptStoreError, errors.UnsupportedFormatError, errors.NotAStoreError)):
            cache.open(AST, mode)


def test_what_lies_beside_the_stores_is_no_entry(cache, caplog):
    path = fill(cache, AST)
    (cache.path / "notes.txt").write_text("x")
    (cache.path / "folder").mkdir()
    (cache.path / f".{path.name}.partial").mkdir()  # of a writer that was killed
    with caplog.at_level(logging.WARNING, "embstore"):
        assert [entry.path for entry in cache.entries()] == [path]
    assert messages(caplog, logging.WARNING) == []
    (cache.path / "file.zarr").write_text("x")
    assert [entry.path for entry in cache.entries()] == [path]


def test_no_descriptor_stays_open(cache):
    for duration in range(3):
        fill(cache, {**AST, "duration": duration})

    def look():
        cache.lookup(AST, KEYS)
        cache.lookup({**AST, "duration": 1}, KEYS)
        cache.entries()
        repr(cache)

    look()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        look()
    assert len(os.listdir("/proc/self/fd")) <= before + 2


@needs_root
def test_another_user_reads_what_it_may_not_write(cache):
    path = fill(cache, AST, columns={"source_digest": ["a", "b", "c"]})
    for place in [cache.path, *cache.path.rglob("*")]:
        place.chmod(0o555 if place.is_dir() else 0o444)
    before = sorted(cache.path.rglob("*"))

    def work():
        with cache.open(AST) as store:
            np.testing.assert_array_equal(store[KEYS], ROWS)
            np.testing.assert_array_equal(store.array(), ROWS)
            assert store.select().keys == KEYS
        assert cache.lookup(AST, KEYS, digests={KEYS[0]: "X"}).stale == (KEYS[0],)
        assert cache.find_one(duration=5).path == path
        assert not cache.lookup({**AST, "duration": 10}).hit
        for write in (lambda: fill(cache, AST, keys=["4:dog"]), lambda: cache.open({**AST, "duration": 10}, "a")):
            with pytest.raises(errors.ReadOnlyError):
                write()

    assert as_another_user(cache.path, work) == 0
    assert sorted(cache.path.rglob("*")) == before
    for place in [cache.path, *cache.path.rglob("*")]:  # so that pytest can remove them
        place.chmod(0o755 if place.is_dir() else 0o644)


# -- how it looks -----------------------------------------------------------------------------


def test_how_it_looks(cache):
    path = fill(cache, {**AST, "note": "<script>"})
    fill(cache, AST, keys=KEYS[:2])
    text = repr(cache)
    assert str(cache.path) in text
    assert "2 stores" in text
    assert f"{path.name}: 3 rows, note='<script>'" in text
    html = cache._repr_html_()
    assert path.name in html
    assert "<script>" not in html
    assert "&lt;script&gt;" in html

"""Rows that move to another key, content that is encoded once, and the origin of rows."""

import numpy as np
import pytest

import embstore
from embstore._engine.io.stamps import UNKNOWN
from embstore.sources import FileSample, Items, Sample
from embstore.sources.base import Content, stored_digest
from tests.pipeline.test_embed import Numbers


def test_a_label_that_changes_moves_no_sample_to_another_shard(cache, log):
    def shards(label):
        source = Items({f"f{i}:{label}": i for i in range(40)}, name=label)
        results = [embstore.embed(source, Numbers(log), cache, shard=(i, 3)) for i in range(3)]
        return [{key.rpartition(":")[0] for key in result.keys} for result in results]

    assert shards("dog") == shards("cat")
    assert all(shards("bird"))


# -- kinds of digests ---------------------------------------------------------------------------


class Half(FileSample):
    """A part of a file, which gives the digest of the whole one as its version."""

    def read(self):
        content = super().read()
        return content._replace(value=content.value[:1])


class Delegating:
    """A sample of a user, which takes the digest of a file for its own."""

    key, where = "a:_", "here"

    def __init__(self, sample):
        self.sample, self.stamp = sample, sample.stamp

    def read(self):
        return self.sample.read()


def test_the_kind_of_a_digest(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    place = ("a:_", tmp_path / "a", UNKNOWN)
    file = FileSample(*place)
    text, content, array, given = Items([("a:_", "1"), ("b:_", b"1"), ("c:_", np.ones(2)), ("d:_", 1, "v1")], name="x")
    samples = [text, content, array, file, given, Half(*place)]
    samples += [Sample("a:_", lambda: "1", embstore.digest_of("1")), Delegating(file)]
    found = [stored_digest(sample, sample.read()).partition(":")[0] for sample in samples]
    assert found == ["text", "bytes", "value", "bytes", "given", "given", "given", "given"]
    assert stored_digest(given, Content(1, "text:v1")) == "given:text:v1"


@pytest.mark.parametrize("content", ["7", b"7"])
def test_the_content_of_one_key_is_compared_without_the_kind(cache, log, content):
    key = "a:_"
    embstore.embed(Items({key: "7"}, name="x"), Numbers(log), cache)
    assert embstore.embed(Items({key: content}, name="x"), Numbers(log), cache).hits == 1
    config = {**Numbers(log).config, "dataset": "x"}
    assert cache.lookup(config, keys=[key], digests={key: embstore.digest_of(content)}).hit
    assert not cache.lookup(config, keys=[key], digests={key: embstore.digest_of("8")}).hit

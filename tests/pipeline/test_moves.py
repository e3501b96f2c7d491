"""Rows that move to another key, content that is encoded once, and the origin of rows."""

import embstore
from embstore.sources import Items
from tests.pipeline.test_embed import Numbers


def test_a_label_that_changes_moves_no_sample_to_another_shard(cache, log):
    def shards(label):
        source = Items({f"f{i}:{label}": i for i in range(40)}, name=label)
        results = [embstore.embed(source, Numbers(log), cache, shard=(i, 3)) for i in range(3)]
        return [{key.rpartition(":")[0] for key in result.keys} for result in results]

    assert shards("dog") == shards("cat") and all(shards("bird"))

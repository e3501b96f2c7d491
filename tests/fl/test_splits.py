"""Splits and nodes: every sample once, whatever the classes, the nodes and the ratios. Faults 7 and 8 of issue 5."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embstore_fl.errors import NodeError, NodeRangeError, RatiosError
from embstore_fl.splits import NodeShare, SplitScheme, class_order, even_pattern, rng_of, splits_of

counts = st.integers(0, 120)
ratios = st.sampled_from(
    [
        {"train": 0.7, "val": 0.1, "test": 0.2},
        {"train": 0.8, "val": 0.1, "test": 0.1},
        {"train": 0.8, "test": 0.2},
        {"train": 1 / 3, "val": 1 / 3, "test": 1 / 3},
        {"train": 1.0, "val": 0.0, "test": 0.0},
    ]
)


@given(count=counts, ratios=ratios, start=st.integers(0, 50))
def test_every_stretch_of_the_pattern_has_the_ratios(count, ratios, start):
    pattern = even_pattern(count, ratios, start=start)
    assert len(pattern) == count
    for first, last in itertools.combinations(range(0, count + 1, 7), 2):
        for name, ratio in ratios.items():
            found = pattern[first:last].count(name)
            assert abs(found - ratio * (last - first)) < 2
            assert found == 0 or ratio > 0


@given(count=counts, start=st.integers(0, 50))
def test_ten_positions_have_seven_one_and_two(count, start):
    pattern = even_pattern(10, {"train": 0.7, "val": 0.1, "test": 0.2}, start=start)
    assert [pattern.count(name) for name in ("train", "val", "test")] == [7, 1, 2]


@given(groups=st.lists(st.sampled_from([None, 0, 1, "test"]), max_size=80), seed=st.integers(-5, 5))
def test_the_order_of_a_class_has_each_place_once_and_spreads_groups(groups, seed):
    order = class_order(groups, rng=rng_of(seed, "dog"))
    assert sorted(order) == list(range(len(groups)))
    assert order == class_order(groups, rng=rng_of(seed, "dog"))
    half = order[: len(order) // 2]
    for group in set(groups):
        expected = groups.count(group) / 2
        assert abs(sum(groups[place] == group for place in half) - expected) <= 3


@given(count=counts, nodes=st.integers(1, 12))
def test_shares_of_nodes_cover_a_class_without_overlap(count, nodes):
    bounds = [NodeShare(node=node, num_nodes=nodes).bounds(count) for node in range(nodes)]
    assert [place for start, stop in bounds for place in range(start, stop)] == list(range(count))
    sizes = [stop - start for start, stop in bounds]
    assert max(sizes) - min(sizes) <= 1


@given(count=counts, size=st.integers(1, 30))
def test_shares_of_so_many_samples_do_not_overlap(count, size):
    bounds = [NodeShare(node=node, samples_per_node=size).bounds(count) for node in range(130)]
    taken = [place for start, stop in bounds for place in range(start, stop)]
    assert taken == list(range(count))


@given(count=counts, ratios=ratios, seed=st.integers(0, 3))
def test_each_node_has_the_splits_in_their_ratios(count, ratios, seed):
    rng = rng_of(seed, "dog")
    order = class_order([None] * count, rng=rng)
    splits = splits_of([None] * count, SplitScheme(ratios=ratios, seed=seed), rng=rng)
    for node in range(5):
        start, stop = NodeShare(node=node, num_nodes=5).bounds(len(order))
        for name, ratio in ratios.items():
            assert abs(splits[start:stop].count(name) - ratio * (stop - start)) < 2


def test_generators_of_classes_have_nothing_in_common():
    draws = {tuple(rng_of(seed, name).integers(2**32, size=4)) for seed in range(5) for name in ("dog", "drum", "dog ")}
    assert len(draws) == 15
    np.testing.assert_array_equal(rng_of(7, "dog").permutation(9), rng_of(7, "dog").permutation(9))


def test_splits_by_fold_and_by_official_split():
    groups = [0, 1, 2, 3, 4] * 8
    by_fold = SplitScheme(by="fold", folds={"train": (0, 1), "val": (2,), "test": (4,)})
    found = splits_of(groups, by_fold, rng=rng_of(0, "dog"))
    assert found == ["train", "train", "val", None, "test"] * 8
    drawn = splits_of(
        groups,
        SplitScheme(by="fold", folds={"train": (0, 1, 2, 3), "test": (4,)}, ratios={"train": 0.75, "val": 0.25}),
        rng=rng_of(0, "dog"),
    )
    assert [split == "test" for split in drawn] == [group == 4 for group in groups]
    assert drawn.count("val") == 8
    official = ["train", "train", "test"] * 10
    found = splits_of(official, SplitScheme(by="official"), rng=rng_of(0, "dog"))
    assert [split == "test" for split in found] == [split == "test" for split in official]
    assert 2 <= found.count("val") <= 3


@pytest.mark.parametrize(
    "ratios", [{"train": 0.7, "val": 0.1, "test": 0.1}, {"train": 1.2, "test": -0.2}, {"train": float("nan")}, {}]
)
def test_ratios_that_do_not_sum_to_one(ratios):
    with pytest.raises(RatiosError, match="sum to 1") as caught:
        SplitScheme(ratios=ratios)
    assert caught.value.ratios == ratios


@pytest.mark.parametrize(("train", "val"), [(0.8, 0.1), (0.9, 0.1), (0.8, 0.2), (0.7, 0.3), (1.0, 0.0)])
def test_ratios_that_a_subtraction_left(train, val):
    scheme = SplitScheme(ratios={"train": train, "val": val, "test": 1.0 - train - val})  # from -6e-17 on
    found = splits_of(["dog"] * 40, scheme, rng=rng_of(0, "dog"))
    assert [found.count(split) for split in ("train", "val")] == [round(40 * train), round(40 * val)]


def test_schemes_that_make_no_sense():
    with pytest.raises(ValueError, match="'ratio', 'official' or 'fold'"):
        SplitScheme(by="chance")
    with pytest.raises(ValueError, match="each fold in one split"):
        SplitScheme(by="fold", folds={"train": (0, 1), "test": (1,)})
    with pytest.raises(ValueError, match="the splits"):
        SplitScheme(ratios={"training": 1.0})


def test_nodes_that_are_said_twice_or_by_half_or_are_not_there():
    with pytest.raises(NodeError, match="not both") as caught:
        NodeShare(node=0, num_nodes=3, samples_per_node=5)
    assert caught.value.given == {"num_nodes": 3, "samples_per_node": 5}
    with pytest.raises(NodeError, match="with a node's number"):
        NodeShare(node=0)
    with pytest.raises(NodeError, match="positive"):
        NodeShare(node=0, num_nodes=0)
    with pytest.raises(NodeRangeError, match="no node 3: nodes go from 0 to 2") as caught:
        NodeShare(node=3, num_nodes=3)
    assert (caught.value.node, caught.value.nodes) == (3, 3)
    with pytest.raises(NodeRangeError, match="no node -1"):
        NodeShare(node=-1, samples_per_node=3)
    share = NodeShare(node=2, samples_per_node=5)
    with pytest.raises(NodeRangeError, match="nodes go from 0 to 1; each has 5 samples of a class"):
        share.check({"dog": 9, "cat": 3})
    assert share.check({"dog": 20, "drum": 12, "cat": 3}) == ["drum", "cat"]

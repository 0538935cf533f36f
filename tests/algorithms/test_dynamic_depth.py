"""Policies that decide how deep to draft: Dynamic Depth Decoding and OPT-Tree."""

from itertools import pairwise, product
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.algorithms.parts import TableDrafter, assert_closed, grow, make, paths_of, random_table, same_everywhere


def value(law, path):
    return prod(law(path[:depth])[token] for depth, token in enumerate(path))


@pytest.mark.parametrize(("threshold", "passes"), [(0.0, 4), (0.45, 3), (0.55, 2), (0.7, 1), (0.95, 1)])
def test_ddd_stops_when_the_frontier_is_unlikely(threshold, passes):
    """One child of .8 per node: after growth passes 1, 2 and 3 the frontier is worth .64, .512 and .4096."""
    drafter = TableDrafter(same_everywhere(0.8, 0.2))
    options = {"depth": 4, "top_k": 1, "total_tokens": 20, "checks": [1, 2, 3]}
    draft = grow(make("ddd", drafter, threshold=threshold, **options))
    assert drafter.calls == passes + 1
    assert max(map(len, paths_of(draft))) == passes + 1


def test_ddd_without_checks_is_eagle2():
    law, options = random_table(5, 6), {"depth": 3, "top_k": 3, "total_tokens": 14}
    ddd = make("ddd", TableDrafter(law), threshold=1.0, checks=[], **options)
    assert paths_of(grow(ddd)) == paths_of(grow(make("eagle2", TableDrafter(law), **options)))


@given(seed=st.integers(0, 10_000), threshold=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_ddd_trees_are_closed_and_small_enough(seed, threshold):
    drafter = TableDrafter(random_table(seed, 5))
    draft = grow(make("ddd", drafter, depth=4, top_k=3, total_tokens=10, threshold=threshold, checks=[1, 3]), batch=2)
    assert_closed(draft)
    assert draft.nodes.shape[1] <= 10


@given(seed=st.integers(0, 10_000), budget=st.integers(1, 12), max_depth=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_opt_tree_takes_the_likeliest_nodes(seed, budget, max_depth):
    law, vocabulary = random_table(seed, 4), 4
    draft = grow(make("opt_tree", TableDrafter(law), budget=budget, threshold=0.0, max_depth=max_depth))
    every = [path for depth in range(1, max_depth + 1) for path in product(range(vocabulary), repeat=depth)]
    best = sorted(every, key=lambda path: -value(law, path))[:budget]
    assert_closed(draft)
    assert sorted(paths_of(draft)) == sorted(best)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_opt_tree_grows_with_its_budget(seed):
    trees = [
        set(paths_of(grow(make("opt_tree", TableDrafter(random_table(seed, 5)), budget=size, threshold=0.0))))
        for size in (1, 4, 9, 16)
    ]
    assert all(small <= big for small, big in pairwise(trees))


@pytest.mark.parametrize(("threshold", "levels"), [(0.9, 1), (0.7, 2), (0.6, 3), (0.5, 4), (0.3, 5)])
def test_opt_tree_stops_at_the_level_that_gains_too_little(threshold, levels):
    """A chain of .8: the levels add .8, .64, .512, .41 and .33; the first that adds too little is the last one."""
    drafter = TableDrafter(same_everywhere(0.8, 0.0))
    draft = grow(make("opt_tree", drafter, budget=10, threshold=threshold, max_depth=5))
    assert draft.tree.height == drafter.calls == levels
    assert paths_of(draft) == [(0,) * depth for depth in range(1, levels + 1)]

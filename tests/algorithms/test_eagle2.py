"""EAGLE-2's tree against the paper's procedure in plain Python, and the rules that the paper leaves to the code."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.algorithms.parts import Law, Path, TableDrafter, assert_closed, grow, make, paths_of, random_table


def procedure(law: Law, depth: int, top_k: int, total_tokens: int) -> list[Path]:
    """Grow by confidence, then rerank: candidates in generation order, stable sorts, so that ties keep the elder."""

    def children(path: Path, value: float) -> list[tuple[Path, float]]:
        probs = law(path)
        ranked = sorted(range(len(probs)), key=lambda token: -probs[token])[:top_k]
        return [((*path, token), value * probs[token]) for token in ranked]

    pool = frontier = children((), 1.0)
    for _ in range(depth):
        candidates = [child for path, value in frontier for child in children(path, value)]
        pool = pool + candidates
        best = sorted(range(len(candidates)), key=lambda i: -candidates[i][1])[:top_k]
        frontier = [candidates[i] for i in sorted(best)]
    best = sorted(range(len(pool)), key=lambda i: -pool[i][1])[: total_tokens - 1]
    return [pool[i][0] for i in sorted(best)]


@given(
    seed=st.integers(0, 10_000),
    depth=st.integers(0, 4),
    top_k=st.integers(1, 5),
    total_tokens=st.integers(1, 40),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_procedure_on_random_laws(seed, depth, top_k, total_tokens):
    law = random_table(seed, 7)
    drafter = TableDrafter(law)
    draft = grow(make("eagle2", drafter, depth=depth, top_k=top_k, total_tokens=total_tokens))
    assert_closed(draft)
    assert sorted(paths_of(draft)) == sorted(procedure(law, depth, top_k, total_tokens))
    assert drafter.calls == depth + 1


@given(seed=st.integers(0, 10_000), name=st.sampled_from(["eagle2", "eagle3", "ddd"]))
@settings(max_examples=30, deadline=None)
def test_a_bigger_budget_contains_the_smaller_tree(seed, name):
    trees = [
        set(paths_of(grow(make(name, TableDrafter(random_table(seed, 6)), total_tokens=size))))
        for size in (1, 5, 9, 20)
    ]
    assert all(small <= big for small, big in pairwise(trees))


@pytest.mark.parametrize(("depth", "longest"), [(0, 1), (1, 2), (5, 6), (7, 8)])
def test_paths_reach_one_token_further_than_depth(depth, longest):
    law = {0: 0.9, 1: 0.1}
    draft = grow(make("eagle2", TableDrafter(lambda path: list(law.values())), depth=depth, top_k=2, total_tokens=20))
    assert max(map(len, paths_of(draft))) == longest


def test_total_tokens_counts_the_root():
    draft = grow(make("eagle2", TableDrafter(random_table(1, 9)), depth=3, top_k=4, total_tokens=12))
    assert draft.nodes.shape[1] == 12


def test_hand_worked_tree():
    """Values: A .6, B .4; A's children .6 x (.5, .5), B's .4 x (.9, .1). Best four: A .6, B .4, BA .36, AA .3."""
    laws = {(): [0.6, 0.4], (0,): [0.5, 0.5], (1,): [0.9, 0.1]}
    draft = grow(make("eagle2", TableDrafter(lambda path: laws[path]), depth=1, top_k=2, total_tokens=5))
    assert paths_of(draft) == [(0,), (1,), (0, 0), (1, 0)]


def test_ties_keep_the_shallower_node():
    """Certain continuations tie with their parents: the cut goes through the deepest of them."""
    draft = grow(make("eagle2", TableDrafter(lambda path: [1.0, 0.0]), depth=5, top_k=2, total_tokens=4))
    assert paths_of(draft) == [(0,), (0, 0), (0, 0, 0)]
    assert_closed(draft)


def test_rows_of_a_batch_are_trees_of_their_own():
    draft = grow(make("eagle2", TableDrafter(random_table(3, 6)), depth=2, top_k=3, total_tokens=9), batch=2)
    assert paths_of(draft, 0) == paths_of(draft, 1)

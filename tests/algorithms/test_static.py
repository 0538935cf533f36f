"""Static trees: Sequoia's dynamic programme against all trees there are, Medusa's greedy growth, SpecInfer's widths."""

from functools import cache
from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.medusa_tree import greedy_paths
from algorithms.sequoia_dp import best_tree, expected_tokens
from algorithms.static_shape import StaticShape
from backend.errors import TreebenchError
from tests.algorithms.parts import TableDrafter, assert_closed, grow, make, paths_of, random_table, same_everywhere

PUBLISHED = (0.773, 0.104, 0.040, 0.021, 0.013, 0.008)
ACCEPTANCE = st.lists(st.floats(0, 0.5), min_size=1, max_size=4)


@cache
def every_forest(num_nodes: int, depth: int, max_children: int) -> list[tuple]:
    """All ordered forests of so many nodes, as nested tuples of the children's forests."""
    if num_nodes == 0:
        return [()]
    if depth == 0 or max_children == 0:
        return []
    return [
        (first, *rest)
        for below in range(num_nodes)
        for first, rest in product(
            every_forest(below, depth - 1, 4), every_forest(num_nodes - 1 - below, depth, max_children - 1)
        )
    ]


def paths_in(forest: tuple, prefix: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    below = [((*prefix, rank), tree) for rank, tree in enumerate(forest)]
    return [path for path, tree in below for path in [path, *paths_in(tree, path)]]


def brute_force(acceptance: list[float], budget: int, depth: int) -> float:
    forests = [forest for size in range(budget + 1) for forest in every_forest(size, depth, 4)]
    return max(expected_tokens(paths_in(forest), acceptance) for forest in forests)


@given(acceptance=ACCEPTANCE, budget=st.integers(1, 5), depth=st.integers(1, 7))
@settings(max_examples=30, deadline=None)
def test_dynamic_programme_equals_brute_force(acceptance, budget, depth):
    best = best_tree(acceptance, budget, depth)
    assert best.expected_tokens == pytest.approx(brute_force(acceptance, budget, depth))
    assert best.expected_tokens == pytest.approx(expected_tokens(best.paths, acceptance))
    assert len(best.paths) <= budget
    assert max(map(len, best.paths), default=0) <= depth
    StaticShape(best.paths)


@pytest.mark.parametrize("budget", [7, 8])
@pytest.mark.parametrize("depth", [2, 3, 8])
@pytest.mark.parametrize("acceptance", [[0.6, 0.2, 0.1], [0.3, 0.3, 0.3], [0.1, 0.5, 0.0, 0.3], [0.9]])
def test_dynamic_programme_equals_brute_force_on_larger_trees(acceptance, budget, depth):
    assert best_tree(acceptance, budget, depth).expected_tokens == pytest.approx(brute_force(acceptance, budget, depth))


def test_hand_worked_sequoia_tree():
    """p = (.6, .3): A .6, AA .36, B .3, AAA .216, AB and BA .18. Four nodes: A, AA, B, AAA, worth 1 + 1.476."""
    best = best_tree([0.6, 0.3], 4, 10)
    assert sorted(best.paths) == [(0,), (0, 0), (0, 0, 0), (1,)]
    assert best.expected_tokens == pytest.approx(2.476)
    assert best_tree([0.6, 0.3], 4, 2).expected_tokens == pytest.approx(1 + 0.6 + 0.36 + 0.3 + 0.18)


@pytest.mark.parametrize("depth", [3, 64])
def test_ranks_that_fall_off_make_the_programme_greedy(depth):
    """With falling acceptance the best nodes are closed by themselves: greedy growth must be worth the same."""
    greedy = greedy_paths([PUBLISHED] * depth, 64)
    assert best_tree(PUBLISHED, 64, depth).expected_tokens == pytest.approx(expected_tokens(greedy, PUBLISHED))


def test_published_order_of_trees():
    """The paper's claim of scalability: the best tree goes on gaining where chains and k sequences level off."""
    sizes = (16, 64, 256)
    sequoia = [best_tree(PUBLISHED, size, 64).expected_tokens for size in sizes]
    chain = [expected_tokens([(0,) * d for d in range(1, size + 1)], PUBLISHED) for size in sizes]
    many = [[(first,) + (0,) * d for first in range(6) for d in range(size // 6)] for size in sizes]
    sequences = [expected_tokens(paths, PUBLISHED) for paths in many]
    assert all(best > other for best, other in zip(sequoia, sequences, strict=True))
    assert all(best > other for best, other in zip(sequoia, chain, strict=True))
    gains = [[late - early for early, late in pairwise(values)] for values in (sequoia, chain)]
    assert all(best > other for best, other in zip(*gains, strict=True))


@given(seed=st.integers(0, 10_000), children=st.sampled_from(["top_k", "without_replacement"]))
@settings(max_examples=30, deadline=None)
def test_sequoia_grows_its_shape(seed, children):
    drafter = TableDrafter(random_table(seed, 7))
    options = {"acceptance": [0.6, 0.2, 0.1], "budget": 12, "max_depth": 4}
    draft = grow(make("sequoia", drafter, children=children, draft_temperature=1.0, **options), seed, batch=2)
    shape = best_tree([0.6, 0.2, 0.1], 12, 4).paths
    assert_closed(draft)
    assert len(paths_of(draft)) == len(shape) == 12
    assert drafter.calls == max(map(len, shape))
    assert sorted(map(len, paths_of(draft))) == sorted(map(len, shape))


def test_medusa_takes_the_likeliest_neighbour():
    """.5 .3 at depth 1, .8 .1 at depth 2: A .5, AA .4, B .3, BA .24, AB .05, BB .03."""
    accuracies, order = [[0.5, 0.3], [0.8, 0.1]], [(0,), (0, 0), (1,), (1, 0), (0, 1), (1, 1)]
    for budget in range(8):
        assert greedy_paths(accuracies, budget) == order[:budget]
    tokens = {0: 2, 1: 0}  # by rank
    draft = grow(make("medusa_tree", TableDrafter(same_everywhere(0.3, 0.1, 0.6)), accuracies=accuracies, budget=4))
    assert paths_of(draft) == sorted(
        [tuple(tokens[r] for r in p) for p in order[:4]], key=lambda p: (len(p), p[0] == 0)
    )


def test_medusa_defaults_to_63_nodes():
    drafter = TableDrafter(random_table(0, 8))
    assert len(paths_of(grow(make("medusa_tree", drafter, budget=63)))) == 63


def test_specinfer_draws_with_replacement():
    drafter = TableDrafter(same_everywhere(0.98, 0.01, 0.01))
    draft = grow(make("specinfer", drafter, expansion=[3, 2], children="iid"))
    assert len(paths_of(draft)) == 9
    assert len(set(paths_of(draft))) < 9
    assert draft.laws is not None


def test_specinfer_top_k_takes_the_likeliest():
    draft = grow(make("specinfer", TableDrafter(same_everywhere(0.2, 0.5, 0.3)), expansion=[2, 1], children="top_k"))
    assert paths_of(draft) == [(1,), (2,), (1, 1), (2, 1)]
    with pytest.raises(TreebenchError):
        make("specinfer", TableDrafter(same_everywhere(1.0)), children="without_replacement")


def test_a_vocabulary_narrower_than_the_tree():
    draft = grow(make("medusa_tree", TableDrafter(same_everywhere(0.7, 0.3)), budget=20))
    assert_closed(draft)
    assert len(set(paths_of(draft))) == len(paths_of(draft)) < 20


@pytest.mark.parametrize("paths", [[(0,), (1, 0)], [(1,)], [(0, 0)]])
def test_shapes_with_holes_are_refused(paths):
    with pytest.raises(TreebenchError):
        StaticShape(paths)

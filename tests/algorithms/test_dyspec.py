"""DySpec: its three builds against each other, the threshold, and what a budget promises."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.errors import TreebenchError
from tests.algorithms.parts import TableDrafter, assert_closed, grow, make, paths_of, random_table, same_everywhere
from tests.algorithms.test_dynamic_depth import value

SEEDS = st.integers(0, 10_000)
KINDS = st.sampled_from(["without_replacement", "top_k"])


def dyspec(law, seed: int = 0, batch: int = 1, **options):
    drafter = TableDrafter(law)
    draft = grow(make("dyspec", drafter, draft_temperature=1.0, **options), seed, batch)
    assert_closed(draft)
    return draft, drafter


@pytest.mark.parametrize(("budget", "expected"), [(1, 1), (2, 2), (3, 3), (4, 4)])
def test_hand_worked_best_first_tree(budget, expected):
    """A .7 and its A .49 go before B .3, then AAA .343 does: order A, AA, AAA, B."""
    draft, _ = dyspec(same_everywhere(0.7, 0.3), children="top_k", budget=budget)
    order = [(0,), (0, 0), (0, 0, 0), (1,)]
    assert sorted(paths_of(draft)) == sorted(order[:expected])


@given(seed=SEEDS, budget=st.integers(1, 20), children=KINDS)
@settings(max_examples=40, deadline=None)
def test_layerwise_spends_the_budget_and_asks_once_per_level(seed, budget, children):
    draft, drafter = dyspec(random_table(seed, 5), seed, children=children, budget=budget)
    assert len(paths_of(draft)) == budget
    assert drafter.calls <= draft.tree.height + 1


@given(seed=SEEDS, budget=st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_builds_agree_where_nothing_is_drawn(seed, budget):
    law = random_table(seed, 4)
    layers, _ = dyspec(law, children="top_k", budget=budget)
    heap, _ = dyspec(law, children="top_k", budget=budget, build="algorithm1")
    assert sorted(paths_of(layers)) == sorted(paths_of(heap))


@given(seed=SEEDS, threshold=st.floats(0.02, 1), children=KINDS)
@settings(max_examples=40, deadline=None)
def test_threshold_fills_exactly_the_slots_worth_it(seed, threshold, children):
    """Unless the budget cuts in, a drawn node's slot is worth the mass left at its parent, and its parent's reach."""
    law, options = random_table(seed, 4), {"children": children, "build": "threshold", "budget": 200}
    draft, drafter = dyspec(law, seed, threshold=threshold, **options)
    paths = paths_of(draft)
    assert drafter.asked == len([p for p in [(), *paths] if value(law, p) >= threshold - 1e-6]) or not paths
    siblings: dict[tuple, float] = {}
    for path in paths:
        parent = path[:-1]
        left = 1 - siblings.get(parent, 0.0) if children == "without_replacement" else law(parent)[path[-1]]
        assert value(law, parent) * left >= threshold - 1e-5
        siblings[parent] = siblings.get(parent, 0.0) + law(parent)[path[-1]]
    if children == "without_replacement":
        for parent, mass in siblings.items():
            exhausted = 1 - mass < 1e-5
            assert exhausted or value(law, parent) * (1 - mass) < threshold + 1e-5


@given(seed=SEEDS, budget=st.integers(1, 15))
@settings(max_examples=40, deadline=None)
def test_a_capped_threshold_tree_is_the_layerwise_tree(seed, budget):
    """With a threshold too low to matter, keeping the best slots by their value before the draw is all that is left."""
    law, options = random_table(seed, 4), {"children": "without_replacement", "budget": budget}
    layers, _ = dyspec(law, seed, **options)
    capped, _ = dyspec(law, seed, build="threshold", threshold=1e-9, **options)
    assert paths_of(layers) == paths_of(capped)


@given(seed=SEEDS, budget=st.integers(1, 30), children=KINDS)
@settings(max_examples=40, deadline=None)
def test_threshold_trees_keep_the_budget(seed, budget, children):
    draft, _ = dyspec(random_table(seed, 5), seed, 2, children=children, budget=budget, build="threshold")
    assert draft.nodes.shape[1] <= budget + 1


@given(seed=SEEDS, build=st.sampled_from(["layerwise", "algorithm1"]))
@settings(max_examples=30, deadline=None)
def test_a_bigger_budget_contains_the_smaller_tree(seed, build):
    law, options = random_table(seed, 5), {"children": "top_k", "build": build}
    trees = [set(paths_of(dyspec(law, seed, budget=size, **options)[0])) for size in (1, 3, 8, 15)]
    assert all(small <= big for small, big in pairwise(trees))


def test_laws_are_those_that_children_were_drawn_from():
    law = random_table(2, 5)
    draft, _ = dyspec(law, 2, children="without_replacement", budget=10, build="threshold", threshold=0.05)
    parents = {path[:-1] for path in paths_of(draft)}
    for place, path in enumerate([(), *paths_of(draft)]):
        if path in parents:
            found = draft.laws_at(torch.tensor([0]), torch.tensor([place]))
            torch.testing.assert_close(found[0], torch.tensor(law(path)))


@pytest.mark.parametrize("options", [{"build": "depthwise"}, {"children": "iid"}, {"threshold": 0.1}])
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(TreebenchError):
        make("dyspec", TableDrafter(same_everywhere(1.0)), **options)

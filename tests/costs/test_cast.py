"""CAST's rules: Theorem 4.1, limits, monotony, closed trees, inversions, and a fixture where each switch matters."""

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from algorithms.base import TreeAlgorithm
from algorithms.cast import Cast, chord
from algorithms.registry import create
from backend.costs import Axes, LatencyTable, Surface
from backend.errors import TreebenchError
from tests.algorithms.parts import TableDrafter, assert_closed, grow, nodes_of, paths_of, same_everywhere
from tests.costs.parts import PAPER, Formulas, affine, make
from tests.parts import options_of

FALLING = [Fraction(n, 100) for n in (40, 22, 14, 9, 6, 4, 3, 1)]


def sums(values: list[Any]) -> list[Any]:
    return list(itertools.accumulate(values))


def size_of(algorithm: TreeAlgorithm, batch: int = 1) -> int:
    return len(nodes_of(grow(algorithm, batch=batch))) - 1


# --- the chord test ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", range(2, 8))
def test_theorem_4_1_affine_cost_keeps_exactly_the_top_k(top_k):
    """With c = slope k + offset and C1 = mean v(K) / slope."""
    slope, offset = Fraction(1, 7), Fraction(5, 3)
    cost = [slope * k + offset for k in range(1, len(FALLING) + 1)]
    threshold = FALLING[top_k - 1] / slope
    assert chord(sums(FALLING), cost, threshold, strict=False) == top_k
    assert chord(sums(FALLING), cost, threshold * (1 - Fraction(1, 10**9))) == top_k
    assert chord(sums(FALLING), cost, threshold) == top_k - 1  # a strict test leaves the node at the threshold out


def test_flat_cost_keeps_everything_and_steep_cost_the_least():
    utility = sums(FALLING)
    assert chord(utility, [1] * len(utility), 4) == len(utility)
    assert chord(utility, [10**9 * k for k in range(1, 9)], 4) == 1
    assert chord(utility, [10**9 * k for k in range(1, 9)], 4, start=0) == 0


def test_a_chord_steps_over_a_plateau_of_cost_steps():
    cost = [1, 1.5, 1.5, 1.5, 1.5, 2.0, 2.0, 2.0]  # the second node alone is not worth 0.5, the second to fifth are
    assert chord(sums([0.4, 0.2, 0.2, 0.2, 0.2, 0.01, 0.01, 0.01]), cost, 1.0) == 5
    assert chord(sums([0.4, 0.2, 0.2, 0.2, 0.2, 0.01, 0.01, 0.01]), cost, 1.0, whole=False) == 1


@pytest.mark.parametrize("seed", range(20))
def test_what_is_kept_never_grows_with_the_slope(seed):
    utility = np.sort(np.random.default_rng(seed).random(30))[::-1].cumsum().tolist()
    kept = [chord(utility, [1 + slope * k for k in range(30)], 2.5) for slope in (0, 0.05, 0.1, 0.2, 0.4, 0.8)]
    assert kept == sorted(kept, reverse=True)


# --- whole trees ------------------------------------------------------------------------------------------------------


def test_flat_cost_gives_the_whole_budget_and_steep_cost_one_node():
    flat, steep = affine(0.0, draft=0.001, draft_slope=0.0), affine(1e9)
    assert size_of(make("cast", flat, **PAPER)) == PAPER["budget"]
    assert size_of(make("cast", steep, **PAPER)) == 1


@pytest.mark.parametrize("name", ["cast", "cast_rate"])
@pytest.mark.parametrize("seed", range(3))
def test_trees_never_grow_with_the_slope(name, seed):
    options = PAPER if name == "cast" else {"width": 10, "max_depth": 3, "budget": 64}
    sizes = [size_of(make(name, affine(slope), seed, **options)) for slope in (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]


@pytest.mark.parametrize("rows", ["uniform", "pooled", "own"])
@pytest.mark.parametrize("name", ["cast", "cast_rate"])
def test_trees_are_closed_under_parents_also_with_tied_scores(name, rows):
    tied = TableDrafter(same_everywhere(1.0, 0.0, 0.0))  # every node of the only path is worth 1
    half = TableDrafter(same_everywhere(0.25, 0.25, 0.25, 0.25))
    for drafter in (tied, half):
        options = options_of(name, {}) | {"rows": rows, "budget": 9, "max_depth": 4}
        draft = grow(create(name, drafter, options, affine(0.01)), batch=3)
        assert_closed(draft)
        assert draft.nodes.shape[1] > 1


def test_the_budget_holds_and_shrinks_with_the_batch():
    flat = affine(0.0, draft=0.001, draft_slope=0.0)
    assert size_of(make("cast", flat, **PAPER, batch_budget=40), batch=4) == 9
    assert size_of(make("cast", flat, **(PAPER | {"budget": 5}))) == 5


def test_uniform_rows_share_one_size_and_own_rows_do_not():
    def law(path: tuple[int, ...]) -> list[float]:
        return [0.9, 0.05, 0.05] if path[:1] == (0,) else [0.4, 0.35, 0.25]

    def grown(rows: str) -> list[int]:
        options = options_of("cast", {}) | PAPER | {"rows": rows}
        algorithm = create("cast", RowsDrafter([same_everywhere(0.96, 0.02, 0.02), law]), options, affine(0.02))
        draft = grow(algorithm, batch=2)
        return [len(nodes_of(draft, row)) for row in range(2)]

    uniform, own = grown("uniform"), grown("own")
    assert uniform[0] == uniform[1]
    assert own[0] != own[1]
    assert grown("pooled")[0] != grown("pooled")[1]


class RowsDrafter(TableDrafter):
    """A law of its own for each row."""

    def __init__(self, laws: list[Any]) -> None:
        super().__init__(laws[0])
        self.rows = [TableDrafter(law) for law in laws]

    def expand(self, tree: Any, nodes: torch.Tensor) -> torch.Tensor:
        return torch.cat([drafter.expand(tree, nodes)[row : row + 1] for row, drafter in enumerate(self.rows)])


def test_an_inverted_table_decides_like_its_lower_envelope():
    """40 rows may be slower than 48; no falling cost ever reaches the chord test."""
    axes = Axes([1], [1, 2, 4, 8, 16, 32, 64], [128])
    verify = [1.0, 1.3, 1.1, 1.4, 1.3, 2.0, 1.9]
    envelope = [1.0, 1.1, 1.1, 1.3, 1.3, 1.9, 1.9]
    draft = [0.02, 0.05, 0.03, 0.06, 0.04, 0.04, 0.04]

    def table(seconds: list[float]) -> LatencyTable:
        surfaces = [Surface.measured(axes, [[[s] for s in curve]]) for curve in (seconds, draft, [0.0] * 7)]
        return LatencyTable(surfaces[0], {"table": surfaces[1]}, {"table": surfaces[2], "none": surfaces[2]})

    for name, options in (("cast", PAPER), ("cast_rate", {"width": 10, "max_depth": 6, "budget": 64})):
        one, other = (paths_of(grow(make(name, table(seconds), **options))) for seconds in (verify, envelope))
        assert one == other
        assert len(one) > 1
    assert (np.diff(table(verify).verify_seconds(1, np.arange(1, 100), 128)) >= 0).all()


# --- the switches -----------------------------------------------------------------------------------------------------

STEPS = Formulas(  # verification in tiles of 8
    lambda batch, width, context: 1 + 0.05 * np.floor(batch * (width - 1) / 8) + context / 1e4,
    lambda batch, width, context: 0.03 + 0.02 * np.floor((width - 1) / 4) + context / 4e3,
)
SWITCHES: dict[str, tuple[dict[str, Any], Any]] = {
    "A1": ({"start_index": 0}, affine(3.0)),
    "A3": ({"scan": "first_failure"}, STEPS),
    "A4": ({"candidates": "all", "max_depth": 3}, affine(0.0, draft=0.05, draft_slope=0.0)),
    "A6": ({"context": "drafts"}, STEPS),
    "A7": ({"thresholds": [2.5, 3.0, 4.0]}, affine(0.03)),
    "A9": ({"count_root": True}, STEPS),
}


def grown_by(costs: Any, **options: Any) -> list[Any]:
    algorithm = make("cast", costs, seed=3, **(PAPER | {"bucket": 16} | options))
    algorithm.start(torch.tensor([300]))
    return paths_of(grow(algorithm))


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_makes_a_difference(switch):
    options, costs = SWITCHES[switch]
    assert grown_by(costs) != grown_by(costs, **options)


def test_a_strict_comparison_matters_at_equality():
    """[A2]"""
    assert chord([0.5, 0.75], [1.0, 1.25], 1.0) == 1
    assert chord([0.5, 0.75], [1.0, 1.25], 1.0, strict=False) == 2


def test_pooling_matters_where_rows_differ():
    """[A5] is tested with the rows above; with one row, all three readings agree."""
    assert len({str(grown_by(affine(0.02), rows=rows)) for rows in ("uniform", "pooled", "own")}) == 1


def test_the_fifo_outlives_a_step_or_not():
    """[A8]"""
    sizes = {}
    for memory in ("request", "step"):
        algorithm = make("cast", affine(0.001, draft=0.06, draft_slope=0.0), seed=3, **PAPER, memory=memory)
        sizes[memory] = [grow(algorithm).tree.height for _ in range(6)]
    assert len(set(sizes["step"])) == 1
    assert sizes["request"][0] == sizes["step"][0]
    assert sizes["request"] != sizes["step"]


def test_a_new_request_forgets_the_fifo():
    algorithm = make("cast", affine(0.001, draft=0.06, draft_slope=0.0), seed=3, **PAPER)
    assert isinstance(algorithm, Cast)
    heights = []
    for _ in range(2):
        algorithm.start(torch.tensor([10]))
        heights.append([grow(algorithm).tree.height for _ in range(3)])
    assert heights[0] == heights[1]


def test_switches_agree_on_affine_cost_and_distinct_scores():
    """A2, A3, A5 and A8 are no choice there, over one cycle."""
    free: list[dict[str, Any]] = [{"strict": False}, {"scan": "first_failure"}, {"rows": "pooled"}, {"memory": "step"}]
    assert len({str(grown_by(affine(0.02), **options)) for options in [{}, *free]}) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scan": "half"}, "cast.scan must be one of whole, first_failure, not 'half'"),
        ({"thresholds": [1.0]}, "three thresholds"),
        ({"rows": "each"}, "rows must be one of uniform, pooled, own"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(TreebenchError, match=message):
        make("cast", affine(0.1), **options)


def test_costs_are_asked_for_buckets_of_the_context():
    costs = affine(0.01)
    algorithm = make("cast", costs, **PAPER, bucket=100, buckets=3)
    for length, expected in ((1, {100}), (150, {200}), (5000, {300})):
        costs.asked.clear()
        algorithm.start(torch.tensor([length]))
        grow(algorithm)
        assert {context for kind, context in costs.asked if kind == "verify"} <= expected | {100 + e for e in expected}

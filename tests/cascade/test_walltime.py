"""Formulas of the cascade papers: the printed example, the effective bounds, the corollary on free bottom models."""

from bisect import bisect_left

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.walltime import DraftCost, best, chain, horizontal, pays_off, round_generating_function, vertical

FIRST, SECOND = DraftCost(0.9, 0.4), DraftCost(0.8, 0.3)
BOTTOM_COST = 0.01
BOUNDS = {  # acceptance of the inserted draft -> largest admissible cost, for a bottom acceptance of .1, .2, .3, .5
    "horizontal": {
        0.60: (0.514, 0.414, 0.314, 0.113),
        0.75: (0.665, 0.567, 0.469, 0.270),
        0.80: (0.716, 0.618, 0.520, 0.323),
        0.90: (0.817, 0.720, 0.623, 0.428),
    },
    "vertical": {
        0.60: (0.492, 0.364, 0.246, 0.070),
        0.75: (0.648, 0.524, 0.426, 0.240),
        0.80: (0.700, 0.582, 0.500, 0.316),
        0.90: (0.808, 0.734, 0.664, 0.516),
    },
}
BOTTOMS = (0.1, 0.2, 0.3, 0.5)
CASES = [
    (kind, acceptance, bottom, expected)
    for kind, table in BOUNDS.items()
    for acceptance, row in table.items()
    for bottom, expected in zip(BOTTOMS, row, strict=True)
]


def two_drafts(first: int, second: int) -> float:
    return horizontal([(FIRST, first), (SECOND, second)])


def test_the_papers_example():
    assert best(lambda k: chain(SECOND, k), range(1, 12)) == (pytest.approx(1.5537, abs=5e-5), (3,))
    assert best(lambda k: chain(FIRST, k), range(1, 12)) == (pytest.approx(1.5750, abs=5e-5), (4,))
    assert best(two_drafts, range(6), range(6)) == (pytest.approx(1.6152, abs=5e-5), (2, 2))


def admissible(kind: str, acceptance: float, bottom: DraftCost, cost: float) -> bool:
    draft = DraftCost(acceptance, cost)
    if kind == "vertical":
        return pays_off(
            lambda n, k: vertical(draft, bottom, bottom.acceptance, k, n), range(1, 10), range(1, 10), bottom=bottom
        )
    return pays_off(lambda k, m: horizontal([(draft, k), (bottom, m)]), range(1, 12), range(12), bottom=bottom)


def bound(kind: str, acceptance: float, bottom: DraftCost) -> float:
    """Largest admissible cost on the grid; a dearer draft is never better."""
    step = 0.002 if kind == "vertical" else 0.001
    refused = bisect_left(range(1, 1000), True, key=lambda i: not admissible(kind, acceptance, bottom, i * step))
    return refused * step


@pytest.mark.parametrize(("kind", "acceptance", "bottom", "expected"), CASES)
def test_effective_bound(kind, acceptance, bottom, expected):
    assert bound(kind, acceptance, DraftCost(bottom, BOTTOM_COST)) == pytest.approx(expected, abs=0.003)


rates = st.floats(0.01, 0.99)


@settings(max_examples=200, deadline=None)
@given(rates, rates, rates, st.integers(1, 8), st.integers(0, 8))
def test_a_free_bottom_never_lowers_the_improvement(acceptance, inner, cost, rounds, length):
    """CS-Drafting's corollary: with a bottom model that costs nothing, reviewing longer chains only helps."""
    draft, free = DraftCost(acceptance, cost), DraftCost(0.5, 0.0)
    alone = chain(draft, rounds)
    cascade = vertical(draft, free, inner, length, rounds)
    assert vertical(draft, free, inner, 0, rounds) == pytest.approx(alone)
    assert cascade >= alone - 1e-9
    assert vertical(draft, free, inner, length + 1, rounds) >= cascade - 1e-9


@settings(max_examples=100, deadline=None)
@given(rates, st.integers(1, 8))
def test_mean_of_an_inner_round(acceptance, length):
    """phi'(1) is the expected number of tokens of a round: those accepted and the reviewer's own."""
    slope = (round_generating_function(1 + 1e-6, acceptance, length) - 1) / 1e-6
    assert slope == pytest.approx(sum(acceptance**i for i in range(length + 1)), rel=1e-4)


def test_certain_drafts():
    sure = DraftCost(1.0, 0.1)
    assert chain(sure, 4) == pytest.approx(5 / 1.4)
    assert vertical(sure, DraftCost(1.0, 0.0), 1.0, 3, 2) == pytest.approx(9 / 1.2)
    assert vertical(DraftCost(0.999999, 0.1), DraftCost(1.0, 0.0), 1.0, 3, 2) == pytest.approx(9 / 1.2, rel=1e-3)

"""Expected walltime improvement of chains and cascades (CS-Drafting, arXiv 2312.11462; CAS-Spec, arXiv 2510.26843).

One target forward costs 1, a forward of draft i costs c_i; a token of draft i is accepted independently with
probability a_i. An improvement is tokens per step, bonus included, over the cost of a step.
"""

from collections.abc import Callable, Iterable
from itertools import product
from typing import NamedTuple

Improvement = Callable[..., float]


class DraftCost(NamedTuple):
    """A draft as the theory sees it."""

    acceptance: float  # of a token, given that those before it were accepted
    cost: float  # of a forward, in target forwards


def geometric(ratio: float, terms: int) -> float:
    """1 + ratio + ... + ratio^(terms - 1)."""
    return float(terms) if ratio == 1 else (1 - ratio**terms) / (1 - ratio)


def chain(draft: DraftCost, length: int) -> float:
    """One draft of `length` tokens, verified by the target (Leviathan et al. 2023, theorem 3.8)."""
    return geometric(draft.acceptance, length + 1) / (1 + draft.cost * length)


def round_generating_function(x: float, acceptance: float, length: int) -> float:
    """phi(x): E[x^tokens] of one inner round: a chain of `length` is reviewed, the reviewer's token included."""
    return 1 + (x - 1) * geometric(acceptance * x, length + 1)


def vertical(reviewer: DraftCost, bottom: DraftCost, inner_acceptance: float, length: int, rounds: int) -> float:
    """`rounds` inner rounds in which the reviewer corrects `length` tokens of the bottom draft, then the target.

    `bottom.acceptance` plays no part: the target reviews what leaves the reviewer. The cost of a step counts one
    reviewer forward per round, however wide.
    """
    a, emitted = reviewer.acceptance, round_generating_function(reviewer.acceptance, inner_acceptance, length)
    expected = 1 + rounds * length + rounds if a == 1 else (1 - a * emitted**rounds) / (1 - a)
    return expected / (1 + rounds * reviewer.cost + rounds * length * bottom.cost)


def horizontal(drafts: Iterable[tuple[DraftCost, int]]) -> float:
    """Drafts one after the other along a chain, each for its number of tokens (CS-Drafting, theorem 4.5)."""
    expected, cost, reached = 1.0, 1.0, 1.0
    for draft, length in drafts:
        expected += reached * draft.acceptance * geometric(draft.acceptance, length)
        reached *= draft.acceptance**length
        cost += draft.cost * length
    return expected / cost


def best(improvement: Improvement, *ranges: Iterable[int]) -> tuple[float, tuple[int, ...]]:
    """The largest improvement over all combinations of lengths, and these."""
    return max((improvement(*lengths), lengths) for lengths in product(*ranges))


def pays_off(cascade: Improvement, *ranges: Iterable[int], bottom: DraftCost, longest: int = 40) -> bool:
    """The effective bound: some cascade over the bottom draft is at least as good as the best chain of it alone."""
    alone = best(lambda length: chain(bottom, length), range(longest + 1))[0]
    return any(cascade(*lengths) >= alone for lengths in product(*ranges))

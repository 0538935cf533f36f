"""DyTC's decision (CAS-Spec, arXiv 2510.26843, section 4): which configuration drafts how much from the best leaf.

The printed objective and stop rule, and the expected walltime improvement that they stand for. Times have any one unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from algorithms.dytc_estimators import Acceptance
from algorithms.walltime import geometric
from backend.errors import TreebenchError

OBJECTIVES = ("paper", "ewif")
TAILS = ("listed", "available")


class Configuration(NamedTuple):
    """One draft as the router sees it now, at one leaf."""

    name: str
    acceptance: Acceptance
    seconds: Sequence[float]  # of drafting 1, 2, ... tokens


class Choice(NamedTuple):
    """Draft `length` tokens with a configuration; `gain` tokens are expected of it, drafting takes `seconds`."""

    name: str
    length: int
    score: float
    gain: float
    seconds: float


class Costs(NamedTuple):
    """Seconds of verifying the root, of each further node, of a token of the bottom draft, and of verifying further
    nodes at all."""

    verify: float
    per_node: float
    bottom: float
    further: float = 0.0


class Policy(NamedTuple):
    """How the router decides.

    objective: `paper` is Eq. 5, whose cost leaves verification out; `ewif` maximises expected tokens over the time of
    the whole step, bonus token and verification included. threshold: `paper` stops where the bottom draft's ratio
    times the leaf's probability falls below it (t_min); `ewif` counts the time of drafting so many times, so that what
    promises little more than it costs is left to drafts that cost nothing.
    tail: whether the token of the bottom draft that both objectives append counts always (`listed`) or only where the
    bottom draft offers one (`available`).
    """

    objective: str
    threshold: float
    tail: str

    @classmethod
    def checked(cls, objective: str, threshold: float, tail: str) -> "Policy":
        if objective not in OBJECTIVES:
            raise TreebenchError(f"cas_spec.objective must be one of {', '.join(OBJECTIVES)}, not {objective!r}")
        if tail not in TAILS:
            raise TreebenchError(f"cas_spec.tail must be one of {', '.join(TAILS)}, not {tail!r}")
        return cls(objective, threshold, tail)


@dataclass
class Budget:
    """A step so far: expected tokens (the bonus is one) and seconds, the root's verification among them.

    `entry` is what the first drafted node adds to verification besides its own share.
    """

    seconds: float
    expected: float = 1.0
    entry: float = 0.0

    def add(self, chance: float, seconds: float) -> None:
        """A node that is reached with this probability and takes so long to verify."""
        self.expected += chance
        self.seconds += seconds + self.entry
        self.entry = 0.0

    @property
    def ratio(self) -> float:
        return self.expected / self.seconds


def choose(
    policy: Policy,
    configurations: Sequence[Configuration],
    bottom: Acceptance,
    offers: bool,
    reached: float,
    costs: Costs,
    budget: Budget,
) -> Choice | None:
    """The best (configuration, length) at a leaf that is reached with probability `reached`; None to leave it.

    `bottom` is the bottom draft's acceptance, `offers` whether it has a token for this leaf.
    """
    tail = bottom.first if offers or policy.tail == "listed" else 0.0
    if policy.objective == "paper":
        stop = bottom.first * reached * costs.verify < policy.threshold * costs.bottom
        choices = [] if stop else [_printed(c, k, tail, reached, costs) for c in configurations for k in _lengths(c)]
        return max(choices, key=lambda choice: choice.score, default=None)
    return _best_improvement(policy, configurations, tail, reached, costs, budget)


def _lengths(configuration: Configuration) -> range:
    return range(1, len(configuration.seconds) + 1)


def _printed(configuration: Configuration, length: int, tail: float, reached: float, costs: Costs) -> Choice:
    """Eq. 5: [a (1 - a^k) / (1 - a) + a^k a_dn] / (c k + c_dn); one acceptance rate, costs in target forwards."""
    alpha = configuration.acceptance.first
    gain = alpha * geometric(alpha, length)
    seconds = configuration.seconds[length - 1]
    cost = (seconds + costs.bottom) / costs.verify
    return Choice(configuration.name, length, (gain + alpha**length * tail) / cost, reached * gain, seconds)


def _best_improvement(
    policy: Policy,
    configurations: Sequence[Configuration],
    tail: float,
    reached: float,
    costs: Costs,
    budget: Budget,
) -> Choice | None:
    """Most tokens per second of the step with the action in it, and with a token of the bottom draft behind it.

    One pass over all lengths, as it is gone through several times per step.
    """
    best, best_score = None, budget.ratio
    before = budget.seconds + budget.entry + policy.threshold * (costs.bottom if tail else 0.0)
    for configuration in configurations:
        later, gain = configuration.acceptance.later, 0.0
        chance = reached * configuration.acceptance.first
        for length, drafting in enumerate(configuration.seconds, 1):
            gain += chance
            seconds = before + policy.threshold * drafting + length * costs.per_node
            score = (budget.expected + gain + chance * tail) / seconds
            if score > best_score:
                best, best_score = (configuration.name, length, score, gain, drafting), score
            chance *= later
    return Choice(*best) if best else None

"""What the DyTC router estimates (CAS-Spec, arXiv 2510.26843): acceptance per configuration, seconds per forward."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from backend.errors import TreebenchError

FORGETTING = 0.98  # of the latency statistics, per observation: contexts grow and clocks change
NOISE = 0.2  # relative error of one timing, by prior
OUTLIER = 3.0  # a timing counts for at most so many times what was predicted


@dataclass
class Acceptance:
    """How often a configuration's tokens are accepted, given that what they follow was: `first` where it takes over
    from another, `later` behind a token of its own. Outcomes enter only where the ancestors were accepted."""

    first: float
    later: float

    def behind_own(self) -> "Acceptance":
        """Of an action that goes on where the configuration's last one ended."""
        return Acceptance(self.later, self.later)


class MovingAverage:
    """The paper's estimator: alpha <- decay alpha + (1 - decay) mean of the last `window` outcomes."""

    def __init__(self, prior: float, decay: float, window: int) -> None:
        self.prior = self.mean = prior
        self.decay = decay
        self.recent: deque[bool] = deque(maxlen=window)

    def add(self, outcome: bool) -> None:
        self.recent.append(outcome)
        self.mean = self.decay * self.mean + (1 - self.decay) * sum(self.recent) / len(self.recent)

    def drift(self, rate: float) -> None:
        self.mean += rate * (self.prior - self.mean)


class BetaPosterior:
    """A Beta posterior whose prior weighs like one outcome in (1 - decay) and which forgets at the same rate."""

    def __init__(self, prior: float, decay: float, window: int) -> None:
        self.prior, self.window = prior, window
        self.hits, self.trials = prior / (1 - decay), 1 / (1 - decay)

    @property
    def mean(self) -> float:
        return self.hits / self.trials

    def add(self, outcome: bool) -> None:
        keep = min(1.0, self.window / (self.trials + 1))
        self.hits, self.trials = keep * (self.hits + outcome), keep * (self.trials + 1)

    def drift(self, rate: float) -> None:
        self.hits += rate * (self.prior - self.mean) * self.trials


ESTIMATORS = {"ema": MovingAverage, "beta": BetaPosterior}


class AcceptanceEstimator:
    """Estimates of one configuration. With `outcomes=first` (the paper) the first token of an action stands for all of
    them; with `all` tokens behind the configuration's own have an estimate of theirs."""

    def __init__(self, kind: str, outcomes: str, prior: float, decay: float, window: int) -> None:
        self._first = ESTIMATORS[kind](prior, decay, window)
        self._later = ESTIMATORS[kind](prior, decay, window) if outcomes == "all" else self._first
        self.used = False

    @property
    def now(self) -> Acceptance:
        return Acceptance(_inside(self._first.mean), _inside(self._later.mean))

    def learn(self, outcomes: Sequence[bool], behind_own: bool = False) -> None:
        """Of an action's tokens in order, up to the first that was refused; `behind_own`: it went on with a chain."""
        if outcomes:
            self.used = True
            (self._later if behind_own else self._first).add(outcomes[0])
            if self._later is not self._first:
                for outcome in outcomes[1:]:
                    self._later.add(outcome)

    def rest(self, rate: float) -> None:
        """Once per step: an idle configuration drifts to its prior, so that it will be tried again."""
        if not self.used:
            for estimate in {id(e): e for e in (self._first, self._later)}.values():
                estimate.drift(rate)
        self.used = False


def _inside(mean: float) -> float:
    return min(max(mean, 1e-4), 0.9999)


def check_estimators(kind: str, outcomes: str) -> None:
    if kind not in ESTIMATORS:
        raise TreebenchError(f"cas_spec.estimator must be one of {', '.join(ESTIMATORS)}, not {kind!r}")
    if outcomes not in ("first", "all"):
        raise TreebenchError(f"cas_spec.outcomes must be first or all, not {outcomes!r}")


@dataclass
class Latency:
    """Bayesian linear regression of seconds on (1, batch, batch x new tokens, context), for one kind of forward.

    `stepped` (not the paper's): whether there is more than one token is a regressor of its own, since a forward of one
    row takes other kernels than one of several, and a line through both overrates what a further token takes.

    The prior says what it costs in target forwards, `base` for one token and `per_token` for each further one; `scale`
    turns that into seconds. Without `learn` the prior is all it knows, in target forwards.
    """

    base: float
    per_token: float
    learn: bool
    stepped: bool = False
    forgetting: float = FORGETTING
    precision: np.ndarray = field(default_factory=lambda: np.diag([1.0, 1.0, 1.0, 1e6, 1.0]))
    moment: np.ndarray = field(default_factory=lambda: np.zeros(5))
    observed: np.ndarray = field(default_factory=lambda: np.zeros((5, 5)))
    _fitted: tuple[float, list[float]] | None = None

    def seconds(self, batch: int, tokens: int, context: int, scale: float) -> float:
        weights = self._weights(scale)
        predicted = weights[0] + batch * (weights[1] + tokens * weights[2]) + context * weights[3]
        predicted += weights[4] * (self.stepped and tokens > 1)
        least = 0.1 * self.prior(batch, tokens) * scale
        return max(predicted, least)

    def prior(self, batch: int, tokens: int) -> float:
        return self.base + self.per_token * (batch * tokens - 1)

    def add(self, batch: int, tokens: int, context: int, seconds: float, scale: float) -> None:
        if not self.learn:
            return
        features = np.array([1.0, batch, batch * tokens, context, self.stepped and tokens > 1])
        seconds = min(seconds, OUTLIER * self.seconds(batch, tokens, context, scale))
        weight = 1 / (NOISE * self.prior(batch, tokens)) ** 2
        self.observed = self.forgetting * self.observed + weight * np.outer(features, features)
        self.moment = self.forgetting * self.moment + weight * seconds * features
        self._fitted = None

    def _weights(self, scale: float) -> list[float]:
        """Posterior mean, in seconds; kept until something is learnt."""
        if self._fitted is None or self._fitted[0] != scale:
            mean = np.array([self.base - self.per_token, 0.0, self.per_token, 0.0, 0.0]) * scale
            precision = self.precision / max(self.base, 0.01) ** 2
            solved = np.linalg.solve(precision + self.observed, precision @ mean + self.moment)
            self._fitted = (scale, solved.tolist())
        return self._fitted[1]

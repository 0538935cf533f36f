"""CAST without thresholds: the tree that promises the most tokens per second (fractional programming, Dinkelbach 1967).

With time in target steps, CAST's three thresholds are guesses of the speedup that is reached; here it is known.
"""

from collections.abc import Sequence
from math import inf
from statistics import NormalDist
from typing import Any

import numpy as np

from algorithms.base import Drafter
from algorithms.confidence import Calibration
from algorithms.cost_aware import CostAware, Counts, Floats, Layer, pooled_order
from algorithms.growth import Growth
from algorithms.loops import best_first, reached
from algorithms.registry import register
from backend.arrays import compiled
from backend.costs import CostModel
from backend.errors import TreebenchError
from backend.tree import Accepted, Draft

CALIBRATIONS = ("none", "online")


@register("cast_rate")
class CastRate(CostAware):
    """With q the chance that a node is accepted, a tree yields 1 + sum of q tokens per row and step.

    Breadth: a candidate is expanded if what its children may yield exceeds `rate` x its seconds; depth: likewise for
    the whole next level, with the verification that it causes; size: the exact maximum of tokens over seconds for the
    candidates at hand, 0 included. The rate is the mean of tokens per modelled second over past steps, of which each
    counts `memory` times the next; it starts at plain decoding's and is never less, as that is at hand. What a level
    yields per unit of the last one is averaged alike. A step drafts if trees have lately been worth more, beyond plain
    decoding, than their first level costs; that mean begins with one node that is accepted. Where it does not pay, a
    step drafts all the same after 2, 4, 8 and at last every `explore_every` steps (null: none does).
    A batch that is decoded to its end waits for its last row: `spread` is the standard deviation of a row's tokens per
    step over a whole answer, per mean, and what a tree yields is divided by what the slowest row is behind by it.
    `calibration` corrects q by what was accepted; `ratios` are its first guess and `strength` their weight.
    """

    def __init__(
        self,
        drafter: Drafter,
        costs: CostModel,
        *,
        memory: float,
        explore_every: int | None,
        spread: float,
        calibration: str,
        strength: float,
        ratios: Sequence[Sequence[float]] | None,
        **options: Any,
    ) -> None:
        if calibration not in CALIBRATIONS:
            raise TreebenchError(f"cast_rate.calibration must be one of {', '.join(CALIBRATIONS)}, not {calibration!r}")
        super().__init__(drafter, costs, **options)
        self.spread, self.lag = spread, 1.0
        self.memory, self.explore_every = memory, explore_every
        self.learns = calibration == "online"
        self.calibration = Calibration(self.max_depth, strength, ratios)
        self.mean_rate: list[float] = []
        self.rate: list[float] = []  # what a second is worth
        self.yields: list[float] = []
        self.last: list[float] = []  # utility of the nodes that were expanded last
        self.gains: list[float] = []  # tokens that drafted trees are worth beyond plain decoding and what they cost
        self.drafted: list[int] = []  # steps that this is the mean of
        self.idle: list[int] = []  # steps without a draft
        self.patience: list[float] = []  # how many of them are enough

    def forget(self, batch: int, groups: int) -> None:
        self.calibration.forget(groups)
        self.mean_rate = self.rate = [self._plain_rate(batch)] * groups
        self.lag = 1 + self.spread * slowest_of(batch)
        self.yields = [1.0] * groups
        plain, verified = self._step(batch, 2).tolist()
        self.gains, self.drafted = [2 / self.lag - 1 - (verified - plain) / plain] * groups, [0] * groups
        self.idle, self.patience = [0] * groups, [inf] * groups

    def _step(self, batch: int, widest: int) -> Floats:
        return self.prices.step(batch, self.sequences.context, widest)

    def _plain_rate(self, batch: int) -> float:
        return 1.0 / float(self._step(batch, 1)[0])

    def _first_level(self, batch: int) -> float:
        return float(self.prices.draft(batch, self.sequences.context, 1)[0])

    def begin(self, batch: int) -> list[bool]:
        """A first level is drafted where it pays on the record so far."""
        self.last = [1.0] * len(self.rate)
        seconds = self._first_level(batch)
        return [self._drafts(group, gain > self.rate[group] * seconds) for group, gain in enumerate(self.gains)]

    def _drafts(self, group: int, pays: bool) -> bool:
        if pays:
            self.idle[group], self.patience[group] = 0, 2
            return True
        self.idle[group] += 1
        if not self.explore_every or self.idle[group] < min(self.patience[group], self.explore_every):
            return False
        self.idle[group], self.patience[group] = 0, 2 * self.patience[group]
        return True

    def path_values(self, growth: Growth, values: list[Floats], first: int) -> Floats:
        builder, new = growth.builder, slice(first, growth.builder.num_nodes)
        chances = self.calibration.corrected(builder.fields.log_probs[:, new], len(values))
        above = first - values[-1].shape[1]  # all parents are of the last level
        return reached(builder.fields.parents[:, new], above, values[-1], chances)

    def keep(self, layer: Layer, values: list[Floats], depth: int) -> list[int]:
        batch, utility = len(layer.values), layer.utility[:, : self.width].tolist()
        seconds = self.prices.draft(batch, self.sequences.context + self.expanded, len(utility[0])).tolist()
        kept = [self._breadth(group, u, seconds) for group, u in enumerate(utility)]
        groups = zip(kept, self.yields, self.last, self.rate, strict=True)
        spare = [yields * u / self.lag / rate - seconds[k - 1] for k, yields, u, rate in groups]  # left to verify with
        swing = self.prices.swing(batch, self.sequences.context, self.most(batch) + 1, max(kept))
        if depth < self.max_depth and min(map(abs, spare)) <= swing:  # else the verification does not turn the scales
            spare = [s - more for s, more in zip(spare, self._more_to_verify(values, kept), strict=True)]
        return [k if s > 0 else 0 for k, s in zip(kept, spare, strict=True)]

    def _breadth(self, group: int, utility: list[float], seconds: list[float]) -> int:
        """The number of candidates whose children promise most, and a note of what the level has yielded."""
        yields = self.memory * self.yields[group] + (1 - self.memory) * utility[-1] / max(self.last[group], 1e-9)
        each, rate = yields / self.lag, self.rate[group]
        worth = [each * u - rate * s for u, s in zip(utility, seconds, strict=True)]
        kept = worth.index(max(worth)) + 1
        self.yields[group], self.last[group] = yields, utility[kept - 1]
        return kept

    def _more_to_verify(self, values: list[Floats], kept: list[int]) -> list[float]:
        """Seconds by which the verification grows if each kept node adds one to the best tree so far."""
        batch, most = len(values[0]), self.most(len(values[0]))
        _, _, sums = best_first(np.concatenate(values[1:], 1), most, 1)
        now = self._best_sizes(batch, self.shared(sums)).tolist()
        step = self._step(batch, most + 1)
        return [float(step[min(n + k, most)] - step[n]) for n, k in zip(now, kept, strict=True)]

    def _best_sizes(self, batch: int, utility: Floats) -> Counts:
        """Exact for these candidates: all sizes are tried, none included."""
        return best_sizes(utility, self.spent + self._step(batch, utility.shape[1] + 1), self.lag)

    def size(self, batch: int, utility: Floats) -> list[int]:
        sizes, step = self._best_sizes(batch, utility).tolist(), self._step(batch, utility.shape[1] + 1)
        for group, k in enumerate(sizes):
            if utility[group, 0] > 0:
                tokens = (1 + float(utility[group, k - 1])) / self.lag if k else 1.0
                self._note_gain(group, batch, tokens, float(step[k] - step[0]))
        return sizes

    def _note_gain(self, group: int, batch: int, tokens: float, more_to_verify: float) -> None:
        """What the tree of this step was worth, all but its first level paid."""
        self.drafted[group] += 1
        weight = max(1 - self.memory, 1 / (1 + self.drafted[group]))
        gain = tokens - 1 - self.rate[group] * (self.spent + more_to_verify - self._first_level(batch))
        self.gains[group] += weight * (gain - self.gains[group])

    def pooled_size(self, values: Floats) -> list[int]:
        """As many of all rows' nodes as maximise the rate, where a forward costs what its mean width does."""
        batch, most = len(values), min(self.most(len(values)), values.shape[1])
        ordered, rows = pooled_order(values, most)
        tokens = np.concatenate([[1.0], (1 + ordered.cumsum() / batch) / self.lag])
        widths = 1 + np.arange(len(tokens)) / batch
        seconds = np.interp(widths, np.arange(1, most + 2), self._step(batch, most + 1))
        total = int((tokens / (self.spent + seconds)).argmax())
        self._note_gain(0, batch, float(tokens[total]), float(seconds[total] - seconds[0]))
        return np.bincount(rows[:total], minlength=batch).tolist()

    def observe(self, draft: Draft, accepted: Accepted) -> None:
        super().observe(draft, accepted)
        if self.learns:
            self.calibration.learn(draft, accepted)
        emitted = self.sequences.emitted
        if not emitted.any():
            return
        seconds = self.spent + float(self._step(len(emitted), draft.nodes.shape[1])[-1])
        lag = self.lag if draft.nodes.shape[1] > 1 else 1.0
        realised = (emitted if self.rows == "own" else self.sequences.mean(emitted)).tolist()
        self.mean_rate = [
            self.memory * rate + (1 - self.memory) * tokens / lag / seconds
            for rate, tokens in zip(self.mean_rate, realised, strict=True)
        ]
        plain = self._plain_rate(len(emitted))
        self.rate = [max(rate, plain) for rate in self.mean_rate]


@compiled
def best_sizes(utility: Floats, seconds: Floats, lag: float) -> Counts:
    """The number of nodes with most tokens per second, for each group; `seconds` of 0, 1, ... of them."""
    sizes = np.zeros(len(utility), np.int64)
    for group in range(len(utility)):
        best = 1 / seconds[0]
        for k in range(1, len(seconds)):
            rate = (1 + utility[group, k - 1]) / lag / seconds[k]
            if rate > best:
                sizes[group], best = k, rate
    return sizes


def slowest_of(rows: int) -> float:
    """How many standard deviations the slowest of some rows is expected below the mean (Blom 1958)."""
    return NormalDist().inv_cdf((rows - 0.375) / (rows + 0.25))

"""CAST without thresholds: the tree that promises the most tokens per second (fractional programming, Dinkelbach 1967).

With time in target steps, CAST's three thresholds are guesses of the speedup that is reached; here it is known.
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algorithms.base import Drafter
from algorithms.confidence import Calibration
from algorithms.cost_aware import CostAware, Counts, Floats, Layer, pooled_order
from algorithms.growth import Growth
from algorithms.registry import register
from backend.arrays import pick
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
    yields per unit of the last one is averaged alike. Where nothing is worth drafting, every `explore_every`-th step
    drafts all the same (null: none).
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
        self.mean_rate: Floats = np.zeros(1)
        self.rate: Floats = np.zeros(1)  # what a second is worth
        self.yields: Floats = np.ones(1)
        self.last: Floats = np.ones(1)  # utility of the nodes that were expanded last
        self.idle = 0

    def forget(self, batch: int, groups: int) -> None:
        self.calibration.forget(groups)
        self.mean_rate = self.rate = np.full(groups, self._plain_rate(batch))
        self.lag = 1 + self.spread * slowest_of(batch)
        self.yields = np.ones(groups)
        self.idle = 0
        self.last = np.ones(groups)

    def _step(self, batch: int, widest: int) -> Floats:
        return self.prices.step(batch, self.sequences.context, widest)

    def _plain_rate(self, batch: int) -> float:
        return 1.0 / self._step(batch, 1)[0]

    def begin(self, batch: int) -> NDArray[np.bool_]:
        """A first level is drafted where it pays on the record so far."""
        self.last = np.ones_like(self.rate)
        step = self._step(batch, 2)
        draft = self.prices.draft(batch, self.sequences.context, 1)[0]
        drafts = (1 + self.yields) / self.lag - 1 - self.rate * (draft + step[1] - step[0]) > 0
        self.idle = 0 if drafts.any() else self.idle + 1
        explores = bool(self.explore_every) and self.idle >= (self.explore_every or 0)
        self.idle = 0 if explores else self.idle
        return drafts | explores

    def path_values(self, growth: Growth, values: list[Floats], first: int) -> Floats:
        builder, new = growth.builder, slice(first, growth.builder.num_nodes)
        parents = np.maximum(builder.fields.parents[:, new], 0)
        reached = pick(np.concatenate(values, 1), parents)
        return reached * self.calibration.corrected(builder.fields.log_probs[:, new], len(values))

    def keep(self, layer: Layer, values: list[Floats], depth: int) -> list[int]:
        utility = layer.utility[:, : self.width]
        batch, most = len(layer.values), utility.shape[1]
        self._note_yield(utility[:, -1])
        seconds = self.prices.draft(batch, self.sequences.context + self.expanded, most)
        worth = self.yields[:, None] * utility / self.lag - self.rate[:, None] * (seconds - seconds[0])
        kept = worth.argmax(1) + 1
        self.last = utility[np.arange(len(kept)), kept - 1]
        gain = self.yields * self.last / self.lag - self.rate * (seconds[kept - 1] + self._more_to_verify(values, kept))
        return np.where(gain > 0, kept, 0).tolist()

    def _note_yield(self, utility: Floats) -> None:
        self.yields = self.memory * self.yields + (1 - self.memory) * utility / np.maximum(self.last, 1e-9)

    def _more_to_verify(self, values: list[Floats], kept: Counts) -> Floats:
        """Seconds by which the verification grows if each kept node adds one to the best tree so far."""
        batch, most = len(values[0]), self.most(len(values[0]))
        utility = self.utility(-np.sort(-np.concatenate(values[1:], 1), axis=1))[:, :most]
        now = self._best_sizes(batch, utility)
        step = self._step(batch, most + 1)
        return step[np.minimum(now + kept, most)] - step[now]

    def _best_sizes(self, batch: int, utility: Floats) -> Counts:
        """Exact for these candidates: all sizes are tried, none included."""
        tokens = np.ones((len(utility), utility.shape[1] + 1))
        tokens[:, 1:] = (1 + utility) / self.lag
        return (tokens / (self.spent + self._step(batch, tokens.shape[1]))).argmax(1)

    def size(self, batch: int, utility: Floats) -> list[int]:
        return self._best_sizes(batch, utility).tolist()

    def pooled_size(self, values: Floats) -> list[int]:
        """As many of all rows' nodes as maximise the rate, where a forward costs what its mean width does."""
        batch, most = len(values), min(self.most(len(values)), values.shape[1])
        ordered, rows = pooled_order(values, most)
        tokens = np.concatenate([[1.0], (1 + ordered.cumsum() / batch) / self.lag])
        widths = 1 + np.arange(len(tokens)) / batch
        seconds = np.interp(widths, np.arange(1, most + 2), self._step(batch, most + 1))
        return np.bincount(rows[: (tokens / (self.spent + seconds)).argmax()], minlength=batch).tolist()

    def observe(self, draft: Draft, accepted: Accepted) -> None:
        super().observe(draft, accepted)
        if self.learns:
            self.calibration.learn(draft, accepted)
        emitted = self.sequences.emitted
        if not emitted.any():
            return
        seconds = self.spent + self._step(len(emitted), draft.nodes.shape[1])[-1]
        realised = emitted if self.rows == "own" else self.sequences.mean(emitted)
        if draft.nodes.shape[1] > 1:
            realised = realised / self.lag
        self.mean_rate = self.memory * self.mean_rate + (1 - self.memory) * realised / seconds
        self.rate = np.maximum(self.mean_rate, self._plain_rate(len(emitted)))


def slowest_of(rows: int) -> float:
    """How many standard deviations the slowest of some rows is expected below the mean (Blom 1958)."""
    return NormalDist().inv_cdf((rows - 0.375) / (rows + 0.25))

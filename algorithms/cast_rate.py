"""CAST without thresholds: the tree that promises the most tokens per second (fractional programming, Dinkelbach 1967).

With time in target steps, CAST's three thresholds are guesses of the speedup that is reached; here it is known.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algorithms.base import Drafter
from algorithms.confidence import Calibration
from algorithms.cost_aware import CostAware, Counts, Floats, Layer, pooled_order
from algorithms.growth import Growth
from algorithms.prices import Sequences
from algorithms.registry import register
from backend.arrays import pick
from backend.costs import CostModel
from backend.errors import TreebenchError
from backend.tree import Accepted, Draft

CALIBRATIONS = ("none", "online")
OBJECTIVES = ("throughput", "makespan")


@register("cast_rate")
class CastRate(CostAware):
    """With q the chance that a node is accepted, a tree yields 1 + sum of q tokens per row and step.

    Breadth: a candidate is expanded if what its children may yield exceeds `rate` x its seconds; depth: likewise for
    the whole next level, with the verification that it causes; size: the exact maximum of tokens over seconds for the
    candidates at hand, 0 included. The rate is the mean of tokens per modelled second over past steps, of which each
    counts `memory` times the next; it starts at plain decoding's and is never less, as that is at hand. What a level
    yields per unit of the last one is averaged alike. Where nothing is worth drafting, every `explore_every`-th step
    drafts all the same (null: none).
    `objective`: tokens are those of the mean row (`throughput`), as where a finished row makes room for another
    request; or of the row that has emitted least (`makespan`), as where the batch waits for its last row.
    `calibration` corrects q by what was accepted; `ratios` are its first guess and `strength` their weight.
    """

    def __init__(
        self,
        drafter: Drafter,
        costs: CostModel,
        *,
        memory: float,
        explore_every: int | None,
        objective: str,
        calibration: str,
        strength: float,
        ratios: Sequence[Sequence[float]] | None,
        **options: Any,
    ) -> None:
        if calibration not in CALIBRATIONS:
            raise TreebenchError(f"cast_rate.calibration must be one of {', '.join(CALIBRATIONS)}, not {calibration!r}")
        if objective not in OBJECTIVES:
            raise TreebenchError(f"cast_rate.objective must be one of {', '.join(OBJECTIVES)}, not {objective!r}")
        super().__init__(drafter, costs, **options)
        if objective == "makespan" and self.rows != "uniform":
            raise TreebenchError("cast_rate.objective=makespan has one size for the batch: it needs rows=uniform")
        self.sequences = Sequences(only_last=objective == "makespan")
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
        self.mean_rate = self.rate = np.full(groups, 1.0 / self._step(batch, 1)[0])
        self.yields = np.ones(groups)
        self.idle = 0
        self.last = np.ones(groups)

    def _step(self, batch: int, widest: int) -> Floats:
        return self.prices.step(batch, self.sequences.context, widest)

    def begin(self, batch: int) -> NDArray[np.bool_]:
        """A first level is drafted where it pays on the record so far."""
        self.last = np.ones_like(self.rate)
        step = self._step(batch, 2)
        draft = self.prices.draft(batch, self.sequences.context, 1)[0]
        drafts = self.yields - self.rate * (draft + step[1] - step[0]) > 0
        self.idle = 0 if drafts.any() else self.idle + 1
        explores = bool(self.explore_every) and self.idle >= (self.explore_every or 0)
        self.idle = 0 if explores else self.idle
        return drafts | explores

    def path_values(self, growth: Growth, values: list[Floats], first: int) -> Floats:
        builder, new = growth.builder, slice(first, growth.builder.num_nodes)
        parents = np.maximum(builder.fields.parents[:, new], 0)
        reached = pick(np.concatenate(values, 1), parents)
        return reached * self.calibration.corrected(builder.fields.log_probs[:, new], len(values))

    def keep(self, layer: Layer, values: list[Floats], depth: int) -> tuple[Counts, NDArray[np.bool_]]:
        utility = layer.utility[:, : self.width]
        batch, most = len(layer.values), utility.shape[1]
        self._note_yield(utility[:, -1])
        seconds = self.prices.draft(batch, self.sequences.context + self.expanded, most)
        worth = self.yields[:, None] * utility - self.rate[:, None] * (seconds - seconds[0])
        kept = worth.argmax(1) + 1
        self.last = utility[np.arange(len(kept)), kept - 1]
        gain = self.yields * self.last - self.rate * (seconds[kept - 1] + self._more_to_verify(values, kept))
        return kept, gain > 0

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
        tokens[:, 1:] += utility
        return (tokens / (self.spent + self._step(batch, tokens.shape[1]))).argmax(1)

    def size(self, batch: int, utility: Floats) -> Counts:
        return self._best_sizes(batch, utility)

    def pooled_size(self, values: Floats) -> Counts:
        """As many of all rows' nodes as maximise the rate, where a forward costs what its mean width does."""
        batch, most = len(values), min(self.most(len(values)), values.shape[1])
        ordered, rows = pooled_order(values, most)
        tokens = 1.0 + np.concatenate([[0.0], ordered.cumsum() / batch])
        widths = 1 + np.arange(len(tokens)) / batch
        seconds = np.interp(widths, np.arange(1, most + 2), self._step(batch, most + 1))
        return np.bincount(rows[: (tokens / (self.spent + seconds)).argmax()], minlength=batch)

    def observe(self, draft: Draft, accepted: Accepted) -> None:
        if self.learns:
            self.calibration.learn(draft, accepted, self.sequences.is_counted)
        super().observe(draft, accepted)
        emitted = self.sequences.emitted
        if not emitted.any():
            return
        seconds = self.spent + self._step(len(emitted), draft.nodes.shape[1])[-1]
        realised = emitted if self.rows == "own" else self.sequences.realised
        self.mean_rate = self.memory * self.mean_rate + (1 - self.memory) * realised / seconds
        self.rate = np.maximum(self.mean_rate, 1.0 / self._step(len(emitted), 1)[0])

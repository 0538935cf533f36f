"""CAST (Hong et al. 2025, arXiv 2510.26577): a tree whose breadth, depth and size are worth what they cost.

The rules follow secondary accounts of the paper; where these leave a choice, it is an option (A1 to A9 below).
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from algorithms.base import Drafter
from algorithms.cost_aware import CostAware, Floats, Layer, pooled_order
from algorithms.registry import register
from backend.costs import CostModel
from backend.errors import TreebenchError

CHOICES = {
    "scan": ("whole", "first_failure"),
    "candidates": ("selected", "all"),
    "context": ("prompt_and_drafts", "drafts"),
    "memory": ("request", "step"),
}


def chord(
    utility: Sequence[Any], cost: Sequence[Any], threshold: Any, start: int = 1, strict: bool = True, whole: bool = True
) -> int:
    """Algorithm 1: the largest k whose chord to the last kept index gains more than `threshold` per cost.

    Element k - 1 belongs to k; index 0 stands for nothing at no cost. `start` is kept in any case [A1]. `strict`: more
    than the threshold, else at least [A2]. `whole`: scan to the end, else to the first failure [A3]. Where cost does
    not rise, a step is taken if utility does not fall.
    """
    kept, (u, c) = start, (utility[start - 1], cost[start - 1]) if start else (0, 0)
    for k in range(start + 1, len(utility) + 1):
        gain, price = utility[k - 1] - u, cost[k - 1] - c
        slope = gain / price if price > 0 else None
        pays = gain >= 0 if slope is None else slope > threshold or (slope == threshold and not strict)
        if pays:
            kept, u, c = k, utility[k - 1], cost[k - 1]
        elif not whole:
            break
    return kept


@register("cast")
class Cast(CostAware):
    """Marginal expected acceptance against marginal cost in target steps, with the `thresholds` C1 (breadth), C2
    (depth), C3 (size) [A7].

    The value of a node is its path probability under the draft law. `candidates` [A4]: a layer's utility is over its
    `width` best candidates, or over all, of which no more than `budget` can be kept. `rows` [A5]: see CostAware;
    `uniform` and `pooled` are the readings of the paper. `context` [A6]: what the cost of a draft level is looked up
    for. `memory` [A8]: how long the last `fifo` growth ratios are kept. `count_root` [A9]: whether verifying k nodes
    is priced as k tokens or as k + 1.
    """

    def __init__(
        self,
        drafter: Drafter,
        costs: CostModel,
        *,
        thresholds: Sequence[float],
        fifo: int,
        start_index: int,
        strict: bool,
        scan: str,
        candidates: str,
        context: str,
        memory: str,
        count_root: bool,
        **options: Any,
    ) -> None:
        for option, value in (("scan", scan), ("candidates", candidates), ("context", context), ("memory", memory)):
            if value not in CHOICES[option]:
                raise TreebenchError(f"cast.{option} must be one of {', '.join(CHOICES[option])}, not {value!r}")
        if len(thresholds) != 3 or start_index not in (0, 1):
            raise TreebenchError("cast needs three thresholds (C1, C2, C3) and a start_index of 0 or 1")
        super().__init__(drafter, costs, **options)
        self.breadth_threshold, self.depth_threshold, self.size_threshold = thresholds
        self.fifo, self.memory = fifo, memory
        self.reading = {"start": start_index, "strict": strict, "whole": scan == "whole"}
        self.selected = candidates == "selected"
        self.counts_prompt = context == "prompt_and_drafts"
        self.count_root = int(count_root)
        self.growth_ratios: list[deque[float]] = []
        self.last_utility: list[float] = []

    def forget(self, batch: int, groups: int) -> None:
        self.growth_ratios = [deque([1.0], maxlen=self.fifo) for _ in range(groups)]
        self.last_utility = [0.0] * groups

    def begin(self, batch: int) -> list[bool]:
        if self.memory == "step":
            self.forget(batch, self.num_groups(batch))
        return super().begin(batch)

    def keep(self, layer: Layer, values: list[Floats], depth: int) -> list[int]:
        batch, most = len(layer.values), self.width if self.selected else self.budget
        utility = layer.utility[:, :most]
        if layer.values[:, utility.shape[1] - 1].max() <= 0:  # some rows propose less; no row proposes as much
            utility = utility[:, : max(1, int((layer.values > 0).sum(1).max()))]
        context = self.expanded - 1 + (self.sequences.context if self.counts_prompt else 0.0)  # the root is no draft
        cost = self.prices.draft_in_steps(batch, context, utility.shape[1])
        return [self._expanded(group, u, cost, depth) for group, u in enumerate(utility.tolist())]

    def _expanded(self, group: int, utility: list[float], cost: list[float], depth: int) -> int:
        """As many as breadth says, where another level is worth its cost if utility grows on as lately; else none."""
        kept = chord(utility, cost, self.breadth_threshold, **self.reading)
        if not kept:
            return 0
        ratios, reached = self.growth_ratios[group], utility[kept - 1]
        if depth > 1 and self.last_utility[group] > 0:
            ratios.append(reached / self.last_utility[group])
        self.last_utility[group] = reached
        return kept if sum(ratios) / len(ratios) * reached / cost[kept - 1] >= self.depth_threshold else 0

    def size(self, batch: int, utility: Floats) -> list[int]:
        cost = self._verify_cost(batch, utility.shape[1])
        return [chord(u, cost, self.size_threshold, **self.reading) for u in utility.tolist()]

    def pooled_size(self, values: Floats) -> list[int]:
        """Utility and cost of k nodes in all rows together: their sum per row, and that of k / batch tokens per row."""
        batch, most = len(values), self.most(len(values))
        ordered, rows = pooled_order(values, most)
        cost = self._verify_cost(batch, min(most, values.shape[1]))
        places = np.arange(1, len(ordered) + 1) / batch
        shared = np.interp(places, np.arange(1, len(cost) + 1), cost).tolist()
        total = chord((ordered.cumsum() / batch).tolist(), shared, self.size_threshold, **self.reading)
        return np.bincount(rows[:total], minlength=batch).tolist()

    def _verify_cost(self, batch: int, widest: int) -> list[float]:
        seconds = self.prices.verify(batch, self.sequences.context, widest + 1)
        return (seconds[self.count_root : self.count_root + widest] / seconds[0]).tolist()

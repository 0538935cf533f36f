"""The tree of CAST (arXiv 2510.26577) with its three decisions left open: how broad, how deep, how much to verify."""

from abc import abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from algorithms.base import Drafter, TreeAlgorithm
from algorithms.growth import Children, Growth
from algorithms.loops import best_first, first_of_each
from algorithms.prices import Prices, Sequences
from backend.costs import CostModel
from backend.errors import TreebenchError
from backend.random import RandomStream
from backend.tree import NO_NODE, Accepted, Draft, TokenTree

ROWS = ("uniform", "pooled", "own")
LIKELIEST = Children.named("top_k", 1.0)
Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


class Layer(NamedTuple):
    """The best candidates of a level, at most `budget`, best first in each row, and what k of them may yield."""

    nodes: Counts  # (row, candidate)
    values: Floats  # (row, candidate): probability of the path, 0 where there is no candidate
    utility: Floats  # (group, k - 1): prefix sums of values, averaged over the rows of the group


class CostAware(TreeAlgorithm):
    """Grows like EAGLE-2, but a level keeps only as many candidates, and there are only as many levels, as pay.

    `rows` says who decides: `uniform` one width and one size for the whole batch, from mean utilities, so that tensors
    stay rectangular (the paper); `own` every row for itself, at the price of a batch of its like; `pooled` is uniform
    but verifies the best nodes of all rows together, at the price of their mean number, as if nothing were padded.
    A group is what decides together: the batch, or a row.
    At most `width` children of a node, `max_depth` levels, `budget` verified nodes, and no more than `batch_budget` in
    all rows together.
    """

    def __init__(
        self,
        drafter: Drafter,
        costs: CostModel,
        *,
        width: int,
        max_depth: int,
        budget: int,
        batch_budget: int,
        rows: str,
        bucket: int,
        buckets: int,
    ) -> None:
        if rows not in ROWS:
            raise TreebenchError(f"rows must be one of {', '.join(ROWS)}, not {rows!r}")
        self.drafter = drafter
        self.prices = Prices(costs, drafter.name, bucket, buckets)
        self.width, self.max_depth = width, max_depth
        self.budget, self.batch_budget = budget, batch_budget
        self.rows = rows
        self.sequences = Sequences()
        self.spent = 0.0  # seconds of the levels that this step has drafted
        self.expanded = 0  # nodes per row that it has expanded

    def start(self, lengths: Int[Tensor, " batch"]) -> None:
        self.sequences.start(lengths)
        self.forget(len(lengths), self.num_groups(len(lengths)))

    def num_groups(self, batch: int) -> int:
        return batch if self.rows == "own" else 1

    def grow(self, tree: TokenTree, random: RandomStream) -> Draft:
        batch = tree.tokens.shape[0]
        if self.sequences.require(batch):
            self.forget(batch, self.num_groups(batch))
        growth = Growth(tree, self.drafter, LIKELIEST, random)
        values, self.spent, self.expanded = [np.ones((batch, 1))], 0.0, 0
        frontier = self._roots(self.begin(batch), growth.root)
        for depth in range(1, self.max_depth + 1):
            first = growth.builder.num_nodes
            if not growth.expand(frontier, self.width).shape[1]:
                break
            self._pay(batch, frontier.shape[1])
            values.append(self.path_values(growth, values, first))
            layer = self._layer(values[-1], first)
            kept = self.keep(layer, values, depth)
            if depth == self.max_depth or not any(kept):
                break
            frontier = self._best(layer, kept)
        return growth.draft(self._verified(np.concatenate(values, 1), growth))

    def observe(self, draft: Draft, accepted: Accepted) -> None:
        self.sequences.observe(accepted)

    @abstractmethod
    def forget(self, batch: int, groups: int) -> None:
        """New sequences begin."""

    def begin(self, batch: int) -> list[bool]:
        """A step begins; which groups draft at all."""
        return [True] * self.num_groups(batch)

    @abstractmethod
    def keep(self, layer: Layer, values: list[Floats], depth: int) -> list[int]:
        """Per group: how many of the layer to expand; `values` of all levels so far, the root's first."""

    @abstractmethod
    def size(self, batch: int, utility: Floats) -> list[int]:
        """Per group: how many nodes below the root to verify; `utility` as in `Layer`, over all levels."""

    def path_values(self, growth: Growth, values: list[Floats], first: int) -> Floats:
        """Probability that decoding gets to each node from `first` on; `values` has those of the nodes before."""
        builder = growth.builder
        return np.exp(builder.fields.path_log_probs[:, first : builder.num_nodes], dtype=np.float64)

    def most(self, batch: int) -> int:
        """Nodes below the root that may be verified per row."""
        return max(1, min(self.budget, self.batch_budget // batch - 1))

    def _layer(self, values: Floats, first: int) -> Layer:
        nodes, ordered, sums = best_first(values, self.budget, first)
        return Layer(nodes, ordered, self.shared(sums))

    def shared(self, sums: Floats) -> Floats:
        """Per group, from each row's."""
        return sums if self.rows == "own" else self.sequences.mean(sums)

    def _roots(self, drafts: list[bool], root: Int[Tensor, "batch 1"]) -> Int[Tensor, "batch 1"]:
        """Of the groups that draft."""
        return root if all(drafts) else root.masked_fill(~torch.tensor(drafts)[:, None], NO_NODE)

    def _best(self, layer: Layer, wanted: list[int]) -> Int[Tensor, "batch kept"]:
        """The first of each row, as many as its group says."""
        return torch.from_numpy(first_of_each(layer.nodes, layer.values, np.array(wanted)))

    def _pay(self, batch: int, width: int) -> None:
        self.spent += float(self.prices.draft(batch, self.sequences.context + self.expanded, width)[-1])
        self.expanded += width

    def _verified(self, values: Floats, growth: Growth) -> Int[Tensor, "batch node"]:
        """The root and the nodes of largest value. They are closed under parents: ties go to the earlier node."""
        if values.shape[1] == 1:
            return growth.root
        layer, batch = self._layer(values[:, 1:], 1), len(values)
        pooled = self.rows == "pooled"
        counts = self.pooled_size(layer.values) if pooled else self.size(batch, layer.utility[:, : self.most(batch)])
        return torch.cat([growth.root, self._best(layer, counts)], 1)

    @abstractmethod
    def pooled_size(self, values: Floats) -> list[int]:
        """Per row: how many of its best nodes to verify, where all rows share one budget."""


def pooled_order(values: Floats, most: int) -> tuple[Floats, Counts]:
    """All rows' nodes by falling value, each row's best `most` only: their values and rows."""
    kept = values[:, :most]
    order = np.argsort(-kept, axis=None, kind="stable")
    return kept.reshape(-1)[order], order // kept.shape[1]

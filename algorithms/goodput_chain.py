"""Goodput-guided chain length (SmartSpec; Liu et al. 2024, arXiv 2406.14066): the length that promises the most tokens
per second at this batch size, none included."""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from algorithms.base import Drafter, TreeAlgorithm
from algorithms.growth import Children, Growth
from algorithms.prices import Prices, Sequences
from algorithms.registry import register
from backend.arrays import on_host
from backend.costs import CostModel
from backend.errors import TreebenchError
from backend.random import RandomStream
from backend.tree import NO_NODE, Accepted, Draft, TokenTree


@register("goodput_chain")
class GoodputChain(TreeAlgorithm):
    """With acceptance rate a, k drafted tokens yield (1 - a^(k + 1)) / (1 - a) per row; k is the same for all rows.

    a is the share of tried tokens that were accepted, a token counting `memory` times as much as one a step later; it
    starts at `prior`. Not drafting is preferred by the factor `plain_bonus` (1.1 in the released code). After
    `explore_every` steps without a draft one token is drafted all the same (null: never). With rows=own each row has
    an a and a length of its own, at the price of a batch of its like.
    """

    def __init__(
        self,
        drafter: Drafter,
        costs: CostModel,
        *,
        max_length: int,
        prior: float,
        memory: float,
        plain_bonus: float,
        explore_every: int | None,
        rows: str,
        bucket: int,
        buckets: int,
    ) -> None:
        if rows not in ("uniform", "own"):
            raise TreebenchError(f"goodput_chain.rows must be uniform or own, not {rows!r}")
        self.drafter = drafter
        self.prices = Prices(costs, drafter.name, bucket, buckets)
        self.max_length, self.prior, self.memory = max_length, prior, memory
        self.plain_bonus, self.explore_every = plain_bonus, explore_every
        self.own = rows == "own"
        self.sequences = Sequences()
        self._forget(1)

    def start(self, lengths: Int[Tensor, " batch"]) -> None:
        self.sequences.start(lengths)
        self._forget(len(lengths))

    def _forget(self, batch: int) -> None:
        groups = batch if self.own else 1
        self.accepted, self.tried = np.full(groups, self.prior), np.ones(groups)
        self.idle = 0

    def grow(self, tree: TokenTree, random: RandomStream) -> Draft:
        batch = tree.tokens.shape[0]
        if self.sequences.require(batch):
            self._forget(batch)
        lengths = self.lengths(batch)
        growth = Growth(tree, self.drafter, Children.named("top_k", 1.0), random)
        leaf = growth.root
        for drafted in range(int(lengths.max())):
            wanted = torch.from_numpy(lengths > drafted).to(leaf.device)[:, None]
            leaf = growth.expand(leaf.masked_fill(~wanted, NO_NODE), width=1) if leaf.shape[1] else leaf
        return growth.draft()

    def lengths(self, batch: int) -> np.ndarray:
        """Per group: the length of largest goodput."""
        rate = np.minimum(self.accepted / self.tried, 0.999)[:, None]
        k = np.arange(self.max_length + 1)
        context = self.sequences.context
        level = self.prices.draft(batch, context, 1)[0]
        goodput = (1 - rate ** (k + 1)) / (1 - rate) / (k * level + self.prices.step(batch, context, len(k)))
        goodput[:, 0] *= self.plain_bonus
        best = goodput.argmax(1)
        self.idle = 0 if best.any() else self.idle + 1
        if self.explore_every and self.idle >= self.explore_every:
            self.idle, best = 0, np.ones_like(best)
        return best

    def observe(self, draft: Draft, accepted: Accepted) -> None:
        """Tokens after the first rejected one were not tried."""
        self.sequences.observe(accepted)
        offered = on_host(draft.exists.sum(1)) - 1
        right = np.maximum(self.sequences.emitted - 1, 0)
        tried = np.where(self.sequences.active, np.minimum(right + 1, offered), 0)
        right = np.where(self.sequences.active, right, 0)
        if not self.own:
            right, tried = right.sum(keepdims=True), tried.sum(keepdims=True)
        fade = np.where(tried > 0, self.memory, 1.0)
        self.accepted, self.tried = self.accepted * fade + right, self.tried * fade + tried

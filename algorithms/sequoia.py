"""Sequoia (Chen et al. 2024, arXiv 2402.12374): the static tree that measured acceptance makes the best one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from torch import Tensor

from algorithms.base import Drafter, TreeAlgorithm
from algorithms.growth import Children, Growth
from algorithms.prices import Prices, Sequences
from algorithms.registry import register
from algorithms.sequoia_dp import Programme
from algorithms.static_shape import StaticShape
from backend.costs import CostModel
from backend.errors import TreebenchError
from backend.random import RandomStream
from backend.tree import Accepted, Draft, TokenTree


@register("sequoia")
class Sequoia(TreeAlgorithm):
    """`acceptance[b]` is how often child number b + 1 is the first accepted one, measured on other prompts.

    The shape follows from it by dynamic programming, once. Children are drawn without replacement, as in the paper;
    `top_k` takes the likeliest tokens instead.
    """

    def __init__(
        self,
        drafter: Drafter,
        *,
        acceptance: Sequence[float],
        budget: int,
        max_depth: int,
        children: str,
        draft_temperature: float,
        draft_top_k: int | None,
        draft_top_p: float | None,
    ) -> None:
        if children == "iid":
            raise TreebenchError("sequoia draws without replacement; children must be without_replacement or top_k")
        self.drafter = drafter
        self.children = Children.named(children, draft_temperature, draft_top_k, draft_top_p)
        self.proposal = self.children.proposal
        self.programme = Programme(acceptance, budget, max_depth)
        self.shape = StaticShape(self.programme.best().paths)

    def grow(self, tree: TokenTree, random: RandomStream) -> Draft:
        growth = Growth(tree, self.drafter, self.children, random)
        self.shape.grow(growth)
        return growth.draft()


@register("sequoia_hardware_aware")
class HardwareAwareSequoia(Sequoia):
    """Sequoia's hardware-aware optimizer (section 3.3): of the best trees of every size and depth, the fastest one.

    n nodes of depth d are worth G(n, d) / (t(n) + d c). t(n) is what verifying them takes; c, what a drafted level
    takes, is that of a level of mean width. The paper measures one batch on one device; here every batch size and
    context bucket has a tree of its own.
    """

    def __init__(
        self,
        drafter: Drafter,
        costs: CostModel,
        *,
        bucket: int,
        buckets: int,
        **options: Any,
    ) -> None:
        super().__init__(drafter, **options)
        self.prices = Prices(costs, drafter.name, bucket, buckets)
        self.sequences = Sequences()
        self.shapes: dict[tuple[int, int], StaticShape] = {}

    def start(self, lengths: Int[Tensor, " batch"]) -> None:
        self.sequences.start(lengths)

    def grow(self, tree: TokenTree, random: RandomStream) -> Draft:
        batch = tree.tokens.shape[0]
        self.sequences.require(batch)
        self.shape = self._shape(batch, self.sequences.context)
        return super().grow(tree, random)

    def observe(self, draft: Draft, accepted: Accepted) -> None:
        self.sequences.observe(accepted)

    def _shape(self, batch: int, context: int | float) -> StaticShape:
        key = (batch, self.prices.select(context))
        if key not in self.shapes:
            depth, num_nodes = self.fastest(batch, context)
            self.shapes[key] = StaticShape(self.programme.tree(depth, num_nodes).paths)
        return self.shapes[key]

    def fastest(self, batch: int, context: int | float) -> tuple[int, int]:
        """Depth and nodes, root included, of the tree with the most tokens per second; it drafts something."""
        tokens = self.programme.expected_tokens[1:, 2:]
        depths, nodes = (1 + np.arange(size) for size in tokens.shape)
        widths = -(-nodes // depths[:, None])  # of a level, on average
        level = self.prices.draft(batch, context, int(nodes[-1]))[widths - 1]
        seconds = self.prices.step(batch, context, 1 + int(nodes[-1]))[nodes] + depths[:, None] * level
        depth, num_nodes = np.unravel_index((tokens / seconds).argmax(), tokens.shape)
        return int(depth) + 1, int(num_nodes) + 2

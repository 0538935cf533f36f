"""OPT-Tree (Wang et al. 2024, arXiv 2406.17276, section 3): the likeliest nodes, as deep as it pays."""

import numpy as np
import torch
from jaxtyping import Float

from algorithms.base import Drafter, TreeAlgorithm
from algorithms.growth import Children, Growth, add_likeliest, compact
from algorithms.registry import register
from backend.random import RandomStream
from backend.tree import NO_NODE, Draft, TokenTree


@register("opt_tree")
class OptTree(TreeAlgorithm):
    """The `budget` nodes of largest path probability: they maximise the estimated number of accepted nodes.

    That number is the sum of their path probabilities. Each level keeps its own `budget` best, since no other node of
    it can be among the best of all levels. A row stops when a level has raised its estimate by less than `threshold`.
    """

    def __init__(self, drafter: Drafter, *, budget: int, threshold: float, max_depth: int) -> None:
        self.drafter = drafter
        self.budget = budget
        self.threshold = threshold
        self.max_depth = max_depth

    def grow(self, tree: TokenTree, random: RandomStream) -> Draft:
        growth = Growth(tree, self.drafter, Children.named("top_k", 1.0), random)
        level, estimate = growth.root, 0.0
        for _ in range(self.max_depth):
            level = add_likeliest(growth, level, self.budget)
            grown = self._estimate(growth)
            level = compact(level.masked_fill(torch.from_numpy(grown - estimate < self.threshold), NO_NODE))
            if not level.shape[1]:
                break
            estimate = grown
        return growth.draft(growth.likeliest(growth.nodes, self.budget + 1))

    def _estimate(self, growth: Growth) -> Float[np.ndarray, "batch 1"]:
        """Expected number of accepted nodes of the best tree so far."""
        best = np.sort(growth.reached(growth.nodes)[:, 1:], axis=1)[:, -self.budget :]
        return np.exp(best).sum(1, keepdims=True)

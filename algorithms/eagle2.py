"""EAGLE-2 (Li et al. 2024, section 4): grow by confidence, then keep the most confident nodes.

EAGLE-3 (Li et al. 2025) keeps this tree under the name `eagle3`; its settings are deeper, its drafting head is new.
"""

from jaxtyping import Int
from torch import Tensor

from algorithms.base import Drafter, TreeAlgorithm
from algorithms.growth import Children, Growth
from algorithms.registry import register
from backend.random import RandomStream
from backend.tree import Draft, TokenTree


@register("eagle2")
@register("eagle3")
class Eagle2(TreeAlgorithm):
    """Context-dependent tree. A node's value is its path probability under the draft law at temperature 1.

    `depth` counts growth passes after the first level, so paths reach `depth + 1` tokens; `total_tokens` counts the
    root. Both as in the official code, where the paper's depth 6 and 60 tokens are 5 and 60. Ties keep the earlier
    node, i.e. the shallower one.
    """

    def __init__(self, drafter: Drafter, *, depth: int, top_k: int, total_tokens: int) -> None:
        self.drafter = drafter
        self.depth = depth
        self.top_k = top_k
        self.total_tokens = total_tokens

    def grow(self, tree: TokenTree, random: RandomStream) -> Draft:
        growth = Growth(tree, self.drafter, Children.named("top_k", 1.0), random)
        frontier = growth.expand(growth.root, self.top_k)
        for passes in range(1, self.depth + 1):
            candidates = growth.expand(frontier, self.top_k)
            if passes < self.depth:
                frontier = self.go_on(growth, growth.likeliest(candidates, self.top_k), passes)  # expansion phase
        return growth.draft(growth.likeliest(growth.nodes, self.total_tokens))  # reranking phase

    def go_on(self, growth: Growth, frontier: Int[Tensor, "batch frontier"], passes: int) -> Tensor:
        """Which nodes to expand next, after so many growth passes; here all of the frontier."""
        return frontier

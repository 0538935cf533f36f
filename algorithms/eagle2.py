"""EAGLE-2 (Li et al. 2024, section 4): grow by confidence, then keep the most confident nodes."""

from algorithms.base import Drafter, TreeAlgorithm
from algorithms.growth import Children, Growth
from algorithms.registry import register
from backend.random import RandomStream
from backend.tree import Draft, TokenTree


@register("eagle2")
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
        for _ in range(self.depth):
            candidates = growth.expand(frontier, self.top_k)
            frontier = growth.likeliest(candidates, self.top_k)  # expansion phase
        return growth.draft(growth.likeliest(growth.nodes, self.total_tokens))  # reranking phase

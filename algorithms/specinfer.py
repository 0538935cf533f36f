"""SpecInfer (Miao et al. 2024, sections 3 and 4): an expansion configuration, its tokens drawn with replacement."""

from collections.abc import Sequence

from algorithms.base import Drafter, TreeAlgorithm
from algorithms.growth import Children, Growth
from algorithms.registry import register
from backend.errors import TreebenchError
from backend.random import RandomStream
from backend.tree import Draft, TokenTree


@register("specinfer")
class SpecInfer(TreeAlgorithm):
    """Every node of level i gets `expansion[i]` children.

    `children=iid` (the paper when sampling) draws them independently, so that siblings may repeat a token: each repeat
    is one more try of multi-step sampling. `top_k` (the paper at temperature 0) takes the likeliest tokens.
    """

    def __init__(self, drafter: Drafter, *, expansion: Sequence[int], children: str, draft_temperature: float) -> None:
        if children == "without_replacement":
            raise TreebenchError("specinfer draws with replacement; children must be iid or top_k")
        self.drafter = drafter
        self.expansion = list(expansion)
        self.children = Children.named(children, draft_temperature)
        self.proposal = self.children.proposal

    def grow(self, tree: TokenTree, random: RandomStream) -> Draft:
        growth = Growth(tree, self.drafter, self.children, random)
        level = growth.root
        for width in self.expansion:
            level = growth.expand(level, width)
        return growth.draft()

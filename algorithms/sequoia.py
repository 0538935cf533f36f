"""Sequoia (Chen et al. 2024, arXiv 2402.12374): the static tree that measured acceptance makes the best one."""

from collections.abc import Sequence

from algorithms.base import Drafter, TreeAlgorithm
from algorithms.growth import Children, Growth
from algorithms.registry import register
from algorithms.sequoia_dp import best_tree
from algorithms.static_shape import StaticShape
from backend.errors import TreebenchError
from backend.random import RandomStream
from backend.tree import Draft, TokenTree


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
        self.shape = StaticShape(best_tree(acceptance, budget, max_depth).paths)

    def grow(self, tree: TokenTree, random: RandomStream) -> Draft:
        growth = Growth(tree, self.drafter, self.children, random)
        self.shape.grow(growth)
        return growth.draft()

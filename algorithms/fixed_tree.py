"""A tree of fixed shape: every node of level i gets widths[i] children, as in SpecInfer's expansion configuration
(Miao et al. 2024) and the static trees of Medusa and EAGLE-1."""

from collections.abc import Sequence

from algorithms.base import Drafter, TreeAlgorithm
from algorithms.growth import Children, Growth
from algorithms.registry import register
from backend.random import RandomStream
from backend.tree import Draft, TokenTree


@register("fixed_tree")
class FixedTree(TreeAlgorithm):
    """Its size never depends on the context; widths (3, 2, 1) give 3 + 6 + 6 nodes below the root."""

    def __init__(
        self,
        drafter: Drafter,
        *,
        widths: Sequence[int],
        children: str,
        draft_temperature: float,
        draft_top_k: int | None,
        draft_top_p: float | None,
    ) -> None:
        self.drafter = drafter
        self.widths = list(widths)
        self.children = Children.named(children, draft_temperature, draft_top_k, draft_top_p)
        self.proposal = self.children.proposal

    def grow(self, tree: TokenTree, random: RandomStream) -> Draft:
        growth = Growth(tree, self.drafter, self.children, random)
        level = growth.root
        for width in self.widths:
            level = growth.expand(level, width)
        return growth.draft()

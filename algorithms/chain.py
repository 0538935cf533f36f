"""Chain speculation (Leviathan et al. 2023; Chen et al. 2023): one branch of `depth` drafted tokens."""

from algorithms.base import Drafter, TreeAlgorithm
from algorithms.growth import Children, Growth
from algorithms.registry import register
from backend.random import RandomStream
from backend.tree import Draft, TokenTree


@register("chain")
class Chain(TreeAlgorithm):
    """Each token follows the last, the likeliest or one drawn from the drafter's law; it ends where none is offered."""

    def __init__(
        self,
        drafter: Drafter,
        *,
        depth: int,
        children: str,
        draft_temperature: float,
        draft_top_k: int | None,
        draft_top_p: float | None,
    ) -> None:
        self.drafter = drafter
        self.depth = depth
        self.children = Children.named(children, draft_temperature, draft_top_k, draft_top_p)
        self.proposal = self.children.proposal

    def grow(self, tree: TokenTree, random: RandomStream) -> Draft:
        growth = Growth(tree, self.drafter, self.children, random)
        leaf = growth.root
        for _ in range(self.depth):
            leaf = growth.expand(leaf, width=1)
        return growth.draft()

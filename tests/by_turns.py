"""An algorithm that asks its drafter about some rows only, which no other does in every step."""

import torch

from algorithms.base import Drafter, TreeAlgorithm
from algorithms.growth import Children, Growth
from backend.random import RandomStream
from backend.tree import NO_NODE, Draft, TokenTree


class ByTurns(TreeAlgorithm):
    """In each step other rows draft, and of those that do, some have their root expanded later than others."""

    def __init__(self, drafter: Drafter) -> None:
        self.drafter, self.step = drafter, 0

    def grow(self, tree: TokenTree, random: RandomStream) -> Draft:
        growth = Growth(tree, self.drafter, Children.named("top_k", 1.0), random)
        self.step += 1
        turn = (torch.arange(len(growth.root))[:, None] + self.step) % 3
        for now in range(self.step % 2 + 1):
            nodes = growth.expand(growth.root.masked_fill(turn != now, NO_NODE), 2)
            growth.expand(nodes, 1)
        return growth.draft()

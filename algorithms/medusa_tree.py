"""Medusa's static tree (Cai et al. 2024, arXiv 2401.10774, section 3.3): grown greedily from measured accuracies."""

import heapq
from collections.abc import Sequence
from math import prod

from algorithms.base import Drafter, TreeAlgorithm
from algorithms.growth import Children, Growth
from algorithms.registry import register
from algorithms.static_shape import Path, StaticShape
from backend.random import RandomStream
from backend.tree import Draft, TokenTree


@register("medusa_tree")
@register("token_recycling")
class MedusaTree(TreeAlgorithm):
    """`accuracies[d][i]` is how often the drafter's token of rank i is right at depth d + 1, measured beforehand.

    Children are the likeliest tokens. Medusa's heads cannot see the tokens on the path, an ordinary drafter does.
    Token Recycling (Luo et al. 2024) verifies such a tree too; it is found under that name with settings of its own.
    """

    def __init__(self, drafter: Drafter, *, accuracies: Sequence[Sequence[float]], budget: int) -> None:
        self.drafter = drafter
        self.shape = StaticShape(greedy_paths(accuracies, budget))

    def grow(self, tree: TokenTree, random: RandomStream) -> Draft:
        growth = Growth(tree, self.drafter, Children.named("top_k", 1.0), random)
        self.shape.grow(growth)
        return growth.draft()


def greedy_paths(accuracies: Sequence[Sequence[float]], budget: int) -> list[Path]:
    """`budget` times the neighbour (first child, next sibling) of the tree so far with the largest product.

    Ties go to the shallower node, then to the lower ranks; fewer nodes where the accuracies know no more.
    """
    neighbours: list[tuple[float, int, Path]] = []
    paths: list[Path] = []

    def push(path: Path) -> None:
        if len(path) <= len(accuracies) and path[-1] < len(accuracies[len(path) - 1]):
            product = prod(accuracies[depth][rank] for depth, rank in enumerate(path))
            heapq.heappush(neighbours, (-product, len(path), path))

    push((0,))
    while neighbours and len(paths) < budget:
        path = heapq.heappop(neighbours)[2]
        paths.append(path)
        push((*path, 0))
        push((*path[:-1], path[-1] + 1))
    return paths

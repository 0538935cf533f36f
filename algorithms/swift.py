"""SWIFT's drafting (Xia et al. 2025, arXiv 2410.06916): a chain as long as the draft is confident, a comb of siblings.

Its official code (hemingkx/SWIFT): up to 25 tokens, stopping after the first one below 0.8; siblings of the chain's
tokens only, the more the less sure the draft is. Kangaroo's chain (Liu et al. 2024) is the same without siblings.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from algorithms.base import Drafter, TreeAlgorithm
from algorithms.growth import Children, Growth, Offspring
from algorithms.registry import register
from backend.errors import TreebenchError
from backend.random import RandomStream
from backend.tree import NO_NODE, Draft, TokenTree


@register("swift")
class Swift(TreeAlgorithm):
    """`widths[i]` children where the draft's probability of its favourite is above `bounds[i]`, the last width below
    all of them; the favourite goes on, unless its probability is below `stop`, in which case it is the last."""

    def __init__(
        self, drafter: Drafter, *, depth: int, stop: float, bounds: Sequence[float], widths: Sequence[int]
    ) -> None:
        if len(widths) != len(bounds) + 1 or sorted(bounds, reverse=True) != list(bounds) or min(widths) < 1:
            raise TreebenchError(
                f"swift.bounds {list(bounds)} must fall and swift.widths {list(widths)} have one more entry, each >= 1"
            )
        self.drafter = drafter
        self.depth = depth
        self.stop = stop
        self.bounds, self.widths = list(bounds), list(widths)

    def grow(self, tree: TokenTree, random: RandomStream) -> Draft:
        growth = Growth(tree, self.drafter, Children.named("top_k", 1.0), random)
        last = growth.root
        for _ in range(self.depth):
            offspring = growth.propose(last, max(self.widths))
            favourite = offspring.log_probs[:, :, :1].exp()
            ranks = torch.arange(offspring.tokens.shape[2], device=last.device)
            surplus = ranks >= self._widths_at(favourite)
            log_probs = offspring.log_probs.masked_fill(surplus, -torch.inf)
            new = growth.add(last, Offspring(offspring.tokens, log_probs))
            last = new[:, :1].masked_fill(favourite[:, :, 0] < self.stop, NO_NODE)
            if (last == NO_NODE).all():
                break
        return growth.draft()

    def _widths_at(self, favourite: Tensor) -> Int[Tensor, "batch 1 1"]:
        below = (
            sum((favourite <= bound).long() for bound in self.bounds) if self.bounds else torch.zeros_like(favourite)
        )
        return torch.tensor(self.widths, device=favourite.device)[torch.as_tensor(below).long()]

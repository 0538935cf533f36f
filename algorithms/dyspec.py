"""DySpec (Xiong et al. 2024, arXiv 2410.11744): spend the budget on the slots that are likeliest to be reached."""

import heapq

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from algorithms.base import Drafter, TreeAlgorithm
from algorithms.growth import Children, Growth, Offspring
from algorithms.registry import register
from algorithms.slots import Filled, best_nodes, fill_best, first_slot_values, slot_values, worth_expanding
from backend.errors import TreebenchError
from backend.random import RandomStream
from backend.tree import NO_NODE, Draft, TokenTree

BUILDS = ("layerwise", "threshold", "algorithm1")


@register("dyspec")
class DySpec(TreeAlgorithm):
    """A slot is the next child of a node; its value is the draft probability that decoding gets to try it (section 4).

    With `children=without_replacement` (the paper) the j-th child of u is worth p(u) (1 - mass drawn before it at u):
    the decision to draw never sees the token. With `top_k` a slot is worth its token's own path probability.
    `build=algorithm1` is the printed loop with a draft call per node. `layerwise` has its law over trees with one draft
    call per level, because a slot's place among the `budget` best depends on larger slots only. `threshold` is
    Algorithm 2: it fills every slot worth `threshold` (null: 1 / budget), so that trees differ in size, and keeps the
    `budget` best of them by their value before the draw.
    """

    def __init__(
        self,
        drafter: Drafter,
        *,
        budget: int,
        children: str,
        draft_temperature: float,
        draft_top_k: int | None,
        draft_top_p: float | None,
        build: str,
        threshold: float | None,
    ) -> None:
        if build not in BUILDS:
            raise TreebenchError(f"dyspec.build must be one of {', '.join(BUILDS)}, not {build!r}")
        if children == "iid":
            raise TreebenchError("dyspec draws without replacement; children must be without_replacement or top_k")
        if threshold is not None and build != "threshold":
            raise TreebenchError("dyspec.threshold belongs to build=threshold")
        self.drafter = drafter
        self.budget = budget
        self.children = Children.named(children, draft_temperature, draft_top_k, draft_top_p)
        self.proposal = self.children.proposal
        self.build = build
        self.threshold = (threshold or 1 / budget) if build == "threshold" else 0.0

    def grow(self, tree: TokenTree, random: RandomStream) -> Draft:
        growth = Growth(tree, self.drafter, self.children, random)
        return growth.draft(self._algorithm1(growth) if self.build == "algorithm1" else self._layerwise(growth))

    def _layerwise(self, growth: Growth) -> Int[Tensor, "batch kept"]:
        frontier, first = growth.root, _of_root(growth)
        least = np.nextafter(np.float32(self.threshold), np.float32(0))  # slots must exceed it
        filled = Filled(first, least * first)
        while frontier.shape[1]:
            offspring = growth.propose(frontier, self.budget)
            slots = slot_values(growth, offspring, first, filled.floor)
            new, values = fill_best(growth, frontier, offspring, slots, self.budget)
            frontier, first, filled = worth_expanding(growth, new, values, filled, self.budget)
        return best_nodes(filled.values, self.budget)

    def _algorithm1(self, growth: Growth) -> Int[Tensor, "batch kept"]:
        """The paper's loop: pop the best slot, draw its token, push its child's slots; siblings wait in the heap."""
        heaps = [[] for _ in growth.root]
        orders = [[()] for _ in heaps]  # draw order along the path of each node; ties pop ancestors and elders first
        node, first = growth.root, _of_root(growth)
        for _ in range(self.budget):
            offspring = growth.propose(node, self.budget)
            slots = slot_values(growth, offspring, first, np.zeros_like(first))
            rows = zip(heaps, orders, node[:, 0].tolist(), slots[:, 0].tolist(), strict=True)
            for b, (heap, order, parent, row_slots) in enumerate(rows):
                for j, value in enumerate(row_slots if parent != NO_NODE else ()):
                    if value > 0:
                        path = (*order[parent], j)
                        token, log_prob = offspring.tokens[b, 0, j].item(), offspring.log_probs[b, 0, j].item()
                        heapq.heappush(heap, (-value, len(path), path, parent, token, log_prob))
            node, popped = _pop_each(growth, heaps, orders)
            first = first_slot_values(growth, node, popped)
        return growth.nodes


def _of_root(growth: Growth) -> Float[np.ndarray, "batch 1"]:
    return np.ones(growth.root.shape, np.float32)


def _pop_each(growth: Growth, heaps: list, orders: list) -> tuple[Tensor, Float[np.ndarray, "batch 1"]]:
    """Add the best slot of every row to its tree; returns the new node per row and the slots' values."""
    nothing = (0.0, 0, (), NO_NODE, 0, -torch.inf)
    best = [heapq.heappop(heap) if heap else nothing for heap in heaps]
    for order, slot in zip(orders, best, strict=True):
        order.append(slot[2])
    values, _, _, parents, tokens, log_probs = ([[part] for part in parts] for parts in zip(*best, strict=True))
    children = Offspring(torch.tensor(tokens)[:, :, None], torch.tensor(log_probs)[:, :, None])
    return growth.add(torch.tensor(parents), children), -np.array(values, np.float32)

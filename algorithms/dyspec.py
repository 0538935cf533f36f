"""DySpec (Xiong et al. 2024, arXiv 2410.11744): spend the budget on the slots that are likeliest to be reached."""

import heapq

import torch
from jaxtyping import Int
from torch import Tensor

from algorithms.base import Drafter, TreeAlgorithm
from algorithms.growth import Children, Growth, Offspring, best_places, compact
from algorithms.registry import register
from algorithms.slots import best_nodes, first_slot_values, pick, slot_values
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
        frontier, values = growth.root, torch.ones_like(growth.tree.log_probs)
        while frontier.shape[1]:
            offspring = growth.propose(frontier, self.budget)
            slots = slot_values(growth, frontier, offspring, values)
            slots = slots.masked_fill(slots < self.threshold, 0)
            best = best_places(slots.flatten(1), self.budget).sort(1).values  # siblings stay in draw order
            new = growth.add(*pick(frontier, offspring, slots, best))
            values = torch.cat([values, slots.flatten(1).gather(1, best).masked_fill(new == NO_NODE, 0)], 1)
            frontier = self._worth_expanding(growth, new, values)
        return best_nodes(values, self.budget)

    def _worth_expanding(self, growth: Growth, new: Tensor, values: Tensor) -> Int[Tensor, "batch frontier"]:
        """New nodes whose first slot can still enter the tree."""
        first_slot = first_slot_values(growth, values).gather(1, new.clamp(min=0))
        known = values[:, 1:].sort(1, descending=True).values
        cut = known[:, self.budget - 1 : self.budget] if known.shape[1] >= self.budget else 0
        hopeless = (first_slot <= cut) | (first_slot < self.threshold)
        return compact(new.masked_fill(hopeless | (new == NO_NODE), NO_NODE))

    def _algorithm1(self, growth: Growth) -> Int[Tensor, "batch kept"]:
        """The paper's loop: pop the best slot, draw its token, push its child's slots; siblings wait in the heap."""
        heaps = [[] for _ in growth.root]
        orders = [[()] for _ in heaps]  # draw order along the path of each node; ties pop ancestors and elders first
        node, values = growth.root, torch.ones_like(growth.tree.log_probs)
        for _ in range(self.budget):
            offspring = growth.propose(node, self.budget)
            slots = slot_values(growth, node, offspring, values)
            rows = zip(heaps, orders, node[:, 0].tolist(), slots[:, 0].tolist(), strict=True)
            for b, (heap, order, parent, row_slots) in enumerate(rows):
                for j, value in enumerate(row_slots if parent != NO_NODE else ()):
                    if value > 0:
                        path = (*order[parent], j)
                        token, log_prob = offspring.tokens[b, 0, j].item(), offspring.log_probs[b, 0, j].item()
                        heapq.heappush(heap, (-value, len(path), path, parent, token, log_prob))
            node, popped = _pop_each(growth, heaps, orders)
            values = torch.cat([values, values.new_tensor(popped)[:, None]], 1)
        return growth.nodes


def _pop_each(growth: Growth, heaps: list, orders: list) -> tuple[Tensor, list[float]]:
    """Add the best slot of every row to its tree; returns the new node per row and the slots' values."""
    nothing = (0.0, 0, (), NO_NODE, 0, -torch.inf)
    best = [heapq.heappop(heap) if heap else nothing for heap in heaps]
    for order, slot in zip(orders, best, strict=True):
        order.append(slot[2])
    device = growth.tree.tokens.device
    parents, tokens = (torch.tensor([slot[i] for slot in best], device=device)[:, None] for i in (3, 4))
    log_probs = torch.tensor([slot[5] for slot in best], device=device)[:, None]
    return growth.add(parents, Offspring(tokens[:, :, None], log_probs[:, :, None])), [-slot[0] for slot in best]

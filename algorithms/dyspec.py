"""DySpec (Xiong et al. 2024, arXiv 2410.11744): spend the budget on the slots that are likeliest to be reached."""

import heapq

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algorithms.base import Drafter, TreeAlgorithm
from algorithms.growth import Children, Growth, Offspring, best_places, compact
from algorithms.registry import register
from backend.errors import TreebenchError
from backend.random import RandomStream
from backend.tree import NO_NODE, Draft, Proposal, TokenTree


@register("dyspec")
class DySpec(TreeAlgorithm):
    """A slot is the next child of a node; its value is the draft probability that decoding gets to try it.

    With `children=without_replacement` (the paper) the j-th child of u is worth p(u) (1 - mass drawn before it at u):
    the decision to draw never sees the token. With `top_k` a slot is worth its token's own path probability.
    `build=layerwise` has Algorithm 1's law over trees with one draft call per level, because a slot's place among the
    `budget` best depends on larger slots only; `build=algorithm1` is the printed loop with a call per node.
    """

    def __init__(self, drafter: Drafter, *, budget: int, children: str, draft_temperature: float, build: str) -> None:
        if build not in ("layerwise", "algorithm1"):
            raise TreebenchError(f"dyspec.build must be layerwise or algorithm1, not {build!r}")
        if children == "iid":
            raise TreebenchError("dyspec draws without replacement; children must be without_replacement or top_k")
        self.drafter = drafter
        self.budget = budget
        self.children = Children.named(children, draft_temperature)
        self.proposal = self.children.proposal
        self.build = build

    def grow(self, tree: TokenTree, random: RandomStream) -> Draft:
        growth = Growth(tree, self.drafter, self.children, random)
        return growth.draft(self._layerwise(growth) if self.build == "layerwise" else self._algorithm1(growth))

    def _layerwise(self, growth: Growth) -> Int[Tensor, "batch kept"]:
        frontier, values = growth.root, torch.ones_like(growth.tree.log_probs)
        while frontier.shape[1]:
            offspring = growth.propose(frontier, self.budget)
            slots = self._slot_values(growth, frontier, offspring, values)
            best = best_places(slots.flatten(1), self.budget).sort(1).values  # siblings stay in draw order
            new = growth.add(*_pick(frontier, offspring, slots, best))
            values = torch.cat([values, slots.flatten(1).gather(1, best).masked_fill(new == NO_NODE, 0)], 1)
            frontier = self._worth_expanding(growth, new, values)
        return _best_nodes(values, self.budget)

    def _slot_values(
        self, growth: Growth, frontier: Tensor, offspring: Offspring, values: Tensor
    ) -> Float[Tensor, "batch frontier width"]:
        """Values before the draw; never above the parent's, whatever rounding says. 0 where there is no slot."""
        reached = growth.tree.path_log_probs.gather(1, frontier.clamp(min=0)).exp()[:, :, None]
        drawn = offspring.log_probs.exp()
        share = drawn if self.proposal is Proposal.DETERMINISTIC else (1 - (drawn.cumsum(2) - drawn)).clamp(min=0)
        slots = torch.minimum(reached * share, values.gather(1, frontier.clamp(min=0))[:, :, None])
        return slots.masked_fill((offspring.log_probs == -torch.inf) | (frontier == NO_NODE)[:, :, None], 0)

    def _worth_expanding(self, growth: Growth, new: Tensor, values: Tensor) -> Int[Tensor, "batch frontier"]:
        """New nodes whose first slot can still enter the budget."""
        first_slot = torch.minimum(growth.tree.path_log_probs.exp(), values).gather(1, new.clamp(min=0))
        known = values[:, 1:].sort(1, descending=True).values
        cut = known[:, self.budget - 1 : self.budget] if known.shape[1] >= self.budget else 0
        return compact(new.masked_fill((first_slot <= cut) | (new == NO_NODE), NO_NODE))

    def _algorithm1(self, growth: Growth) -> Int[Tensor, "batch kept"]:
        """The paper's loop: pop the best slot, draw its token, push its child's slots; siblings wait in the heap."""
        heaps = [[] for _ in growth.root]
        orders = [[()] for _ in heaps]  # draw order along the path of each node; ties pop ancestors and elders first
        node, values = growth.root, torch.ones_like(growth.tree.log_probs)
        for _ in range(self.budget):
            offspring = growth.propose(node, self.budget)
            slots = self._slot_values(growth, node, offspring, values)
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


def _pick(frontier: Tensor, offspring: Offspring, slots: Tensor, places: Tensor) -> tuple[Tensor, Offspring]:
    """The slots at `places` of the flattened candidates, as one child each; nothing where the slot is worth nothing."""
    parents = frontier.gather(1, places // slots.shape[2])
    empty = slots.flatten(1).gather(1, places) <= 0
    tokens, log_probs = (values.flatten(1).gather(1, places)[:, :, None] for values in offspring)
    return parents.masked_fill(empty, NO_NODE), Offspring(tokens, log_probs)


def _best_nodes(values: Tensor, budget: int) -> Int[Tensor, "batch kept"]:
    places = best_places(values, budget + 1)
    return places.masked_fill(values.gather(1, places) <= 0, NO_NODE)

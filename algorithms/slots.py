"""Slots: places for a next child, valued before the token that would fill them is known (DySpec, section 4)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algorithms.growth import Growth, Offspring, best_places, take
from backend.tree import NO_NODE, Proposal


def slot_values(
    growth: Growth,
    frontier: Int[Tensor, "batch frontier"],
    offspring: Offspring,
    values: Float[Tensor, "batch node"],
) -> Float[Tensor, "batch frontier width"]:
    """Values before the draw; never above the parent's, whatever rounding says. 0 where there is no slot."""
    reached = growth.tree.path_log_probs.gather(1, frontier.clamp(min=0)).exp()[:, :, None]
    drawn = offspring.log_probs.exp()
    likeliest = growth.children.proposal is Proposal.DETERMINISTIC
    share = drawn if likeliest else (1 - (drawn.cumsum(2) - drawn)).clamp(min=0)
    slots = torch.minimum(reached * share, values.gather(1, frontier.clamp(min=0))[:, :, None])
    return slots.masked_fill((offspring.log_probs == -torch.inf) | (frontier == NO_NODE)[:, :, None], 0)


def first_slot_values(growth: Growth, values: Float[Tensor, "batch node"]) -> Float[Tensor, "batch node"]:
    """What the first child of each node is worth: that the node is reached."""
    return torch.minimum(growth.tree.path_log_probs.exp(), values)


def pick(
    frontier: Int[Tensor, "batch frontier"],
    offspring: Offspring,
    slots: Float[Tensor, "batch frontier width"],
    places: Int[Tensor, "batch picked"],
) -> tuple[Int[Tensor, "batch picked"], Offspring]:
    """The slots at `places` of the flattened candidates, as one child each; nothing where the slot is worth nothing."""
    parents, picked = take(frontier, offspring, places)
    empty = slots.flatten(1).gather(1, places) <= 0
    return parents.masked_fill(empty, NO_NODE), picked


def best_nodes(values: Float[Tensor, "batch node"], budget: int) -> Int[Tensor, "batch kept"]:
    """The root and the nodes in the `budget` best slots; ancestors and earlier siblings win ties."""
    places = best_places(values, budget + 1)
    return places.masked_fill(values.gather(1, places) <= 0, NO_NODE)

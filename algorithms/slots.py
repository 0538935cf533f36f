"""Slots: places for a next child, valued before the token that would fill them is known (DySpec, section 4)."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from algorithms.growth import Growth, Offspring, best_places, take
from backend.arrays import on_host, pick
from backend.tree import NO_NODE, Proposal


def slot_values(
    growth: Growth,
    frontier: Int[Tensor, "batch frontier"],
    offspring: Offspring,
    values: Float[np.ndarray, "batch node"],
) -> Float[np.ndarray, "batch frontier width"]:
    """Values before the draw; whatever rounding says, never above an elder sibling's or the parent's. 0: no slot."""
    log_probs = on_host(offspring.log_probs)
    reached, drawn = np.exp(growth.reached(frontier)), np.exp(log_probs)
    if growth.children.proposal is Proposal.DETERMINISTIC:
        share = drawn
    else:
        share = np.minimum.accumulate(np.maximum(1 - (drawn.cumsum(2) - drawn), 0), axis=2)
    slots = np.minimum(reached[:, :, None] * share, pick(values, frontier.numpy())[:, :, None])
    return np.where(log_probs == -np.inf, 0, slots)


def first_slot_values(
    growth: Growth, nodes: Int[Tensor, "batch node"], values: Float[np.ndarray, "batch node"]
) -> Float[np.ndarray, "batch node"]:
    """What the first child of each node is worth: that the node is reached; `values` are those of its own slot."""
    return np.minimum(np.exp(growth.reached(nodes)), values)


def fill_best(
    growth: Growth,
    frontier: Int[Tensor, "batch frontier"],
    offspring: Offspring,
    slots: Float[np.ndarray, "batch frontier width"],
    floor: Float[np.ndarray, "batch 1"],
    budget: int,
) -> tuple[Int[Tensor, "batch new"], Float[np.ndarray, "batch new"]]:
    """Make nodes of the `budget` best slots above `floor`, siblings in draw order; also gives the slots' values."""
    is_filled = slots > floor[:, :, None]
    num_children = is_filled.sum(2)  # the first ones of each node, as slots lose value from sibling to sibling
    width = int(num_children.max())
    slots = (slots[:, :, :width] * is_filled[:, :, :width]).reshape(len(slots), -1)
    places = best_places(slots, min(budget, int(num_children.sum(1).max())))
    values = pick(slots, places)
    of, rank = divmod(places, max(width, 1))
    parents, children = take(frontier, offspring, of * offspring.tokens.shape[2] + rank)
    return growth.add(torch.from_numpy(np.where(values > 0, parents.numpy(), NO_NODE)), children), values


def best_nodes(values: Float[np.ndarray, "batch node"], budget: int) -> Int[Tensor, "batch kept"]:
    """The root and the nodes in the `budget` best slots; ancestors and earlier siblings win ties."""
    places = best_places(values, budget + 1)
    worthless = pick(values, places) <= 0
    return torch.from_numpy(np.where(worthless, NO_NODE, places))

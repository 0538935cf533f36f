"""Slots: places for a next child, valued before the token that would fill them is known (DySpec, section 4)."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from algorithms.growth import Growth, Offspring, best_places
from backend.arrays import on_host, pick
from backend.tree import NO_NODE, Proposal


def slot_values(
    growth: Growth,
    offspring: Offspring,
    first: Float[np.ndarray, "batch frontier"],
) -> Float[np.ndarray, "batch frontier width"]:
    """Values before the draw, from those of the first slots; never above an elder sibling's. 0: no slot."""
    drawn = np.exp(on_host(offspring.log_probs))
    if growth.children.proposal is Proposal.DETERMINISTIC:
        return first[:, :, None] * drawn
    slots = np.ones_like(drawn)
    np.subtract(1, drawn[:, :, :-1].cumsum(2), out=slots[:, :, 1:])
    slots *= first[:, :, None]
    slots *= drawn > 0
    return np.maximum(slots, 0, out=slots)


def first_slot_values(
    growth: Growth, nodes: Int[Tensor, "batch node"], values: Float[np.ndarray, "batch node"]
) -> Float[np.ndarray, "batch node"]:
    """What the first child of each node is worth: that the node is reached; never above its own slot's `values`."""
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
    return growth.add_some(frontier, offspring, of * offspring.tokens.shape[2] + rank, values > 0), values


def above(
    floor: Float[np.ndarray, "batch 1"], nodes: Int[Tensor, "batch node"], values: Float[np.ndarray, "batch node"]
) -> tuple[Int[Tensor, "batch kept"], Float[np.ndarray, "batch kept"]]:
    """The nodes whose value exceeds `floor`, in their order, and the values; rows are padded with `NO_NODE` and 0."""
    is_kept = values > floor
    places = (~is_kept).argsort(axis=1, kind="stable")[:, : is_kept.sum(1).max()]
    padding = ~pick(is_kept, places)
    kept, worth = pick(nodes.numpy(), places), pick(values, places)
    kept[padding], worth[padding] = NO_NODE, 0
    return torch.from_numpy(kept), worth


def best_nodes(values: Float[np.ndarray, "batch node"], budget: int) -> Int[Tensor, "batch kept"]:
    """The root and the nodes in the `budget` best slots; ancestors and earlier siblings win ties."""
    places = best_places(values, budget + 1)
    worthless = pick(values, places) <= 0
    return torch.from_numpy(np.where(worthless, NO_NODE, places))

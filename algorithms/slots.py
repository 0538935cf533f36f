"""Slots: places for a next child, valued before the token that would fill them is known (DySpec, section 4)."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algorithms.growth import Growth, Offspring, best_places
from backend.arrays import on_host, pick
from backend.tree import NO_NODE, Proposal


def slot_values(
    growth: Growth,
    offspring: Offspring,
    first: Float[np.ndarray, "batch frontier"],
) -> Float[np.ndarray, "batch frontier width"]:
    """Values before the draw, from those of the first slots; never above an elder sibling's. 0 or less: no slot."""
    drawn, first = np.exp(on_host(offspring.log_probs)), first[:, :, None]
    if growth.children.proposal is Proposal.DETERMINISTIC:
        return first * drawn
    left = drawn[:, :, :-1].cumsum(2)  # mass that is drawn before the second slot, the third, ...
    np.subtract(1, left, out=left)
    left *= first
    slots = np.concatenate([first, left], 2)
    if drawn[:, :, -1].min(initial=1) <= 0:  # some node has fewer tokens
        slots[drawn <= 0] = 0
    return slots


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
    is_filled = (slots > floor[:, :, None]).reshape(len(slots), -1)
    places = _places_where(is_filled)
    values = pick(slots.reshape(len(slots), -1), places)
    if len(slots) > 1:
        values *= pick(is_filled, places)
    if places.shape[1] > budget:
        best = best_places(values, budget)
        places, values = pick(places, best), pick(values, best)
    return growth.add_some(frontier, offspring, places, values > 0), values


def above(
    floor: Float[np.ndarray, "batch 1"], nodes: Int[Tensor, "batch node"], values: Float[np.ndarray, "batch node"]
) -> tuple[Int[Tensor, "batch kept"], Float[np.ndarray, "batch kept"]]:
    """The nodes whose value exceeds `floor`, in their order, and the values; rows are padded with `NO_NODE` and 0."""
    is_kept = values > floor
    places = _places_where(is_kept)
    kept, worth = pick(nodes.numpy(), places), pick(values, places)
    if len(kept) > 1:
        padding = ~pick(is_kept, places)
        kept[padding], worth[padding] = NO_NODE, 0
    return torch.from_numpy(kept), worth


def _places_where(chosen: Bool[np.ndarray, "batch place"]) -> Int[np.ndarray, "batch few"]:
    """Where a row is true, ascending; a row with fewer such places than another one goes on with places where not."""
    if len(chosen) == 1:
        return np.flatnonzero(chosen)[None]
    return (~chosen).argsort(axis=1, kind="stable")[:, : chosen.sum(1).max()]


def best_nodes(values: Float[np.ndarray, "batch node"], budget: int) -> Int[Tensor, "batch kept"]:
    """The root and the nodes in the `budget` best slots; ancestors and earlier siblings win ties."""
    places = best_places(values, budget + 1)
    worthless = pick(values, places) <= 0
    return torch.from_numpy(np.where(worthless, NO_NODE, places))

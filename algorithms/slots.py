"""Slots: places for a next child, valued before the token that would fill them is known (DySpec, section 4)."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from algorithms import loops
from algorithms.growth import Growth, Offspring
from backend.tree import Proposal


def slot_values(
    growth: Growth,
    offspring: Offspring,
    first: Float[np.ndarray, "batch frontier"],
    floor: Float[np.ndarray, "batch 1"],
) -> Float[np.ndarray, "batch frontier width"]:
    """Values before the draw, from those of the first slots; never above an elder sibling's, 0 if not above `floor`."""
    is_drawn = growth.children.proposal is not Proposal.DETERMINISTIC
    return loops.slot_values(offspring.log_probs.numpy(), first, floor, is_drawn)


def first_slot_values(
    growth: Growth, nodes: Int[Tensor, "batch node"], values: Float[np.ndarray, "batch node"]
) -> Float[np.ndarray, "batch node"]:
    """What the first child of each node is worth: that the node is reached; never above its own slot's `values`."""
    return loops.first_slot_values(growth.builder.fields.path_log_probs, nodes.numpy(), values)


def fill_best(
    growth: Growth,
    frontier: Int[Tensor, "batch frontier"],
    offspring: Offspring,
    slots: Float[np.ndarray, "batch frontier width"],
    budget: int,
) -> tuple[Int[Tensor, "batch new"], Float[np.ndarray, "batch new"]]:
    """Make nodes of the `budget` best slots, siblings in draw order; also gives the slots' values."""
    among = frontier.numpy(), offspring.tokens.numpy(), offspring.log_probs.numpy()
    values, *candidates = loops.best_slots(slots, budget, *among)
    return torch.from_numpy(growth.builder.add(*candidates)), values


class Filled(NamedTuple):
    """Values of the slots of all nodes so far, the root's first, and what another slot must exceed."""

    values: Float[np.ndarray, "batch node"]
    floor: Float[np.ndarray, "batch 1"]


def worth_expanding(
    growth: Growth, new: Int[Tensor, "batch new"], values: Float[np.ndarray, "batch new"], filled: Filled, budget: int
) -> tuple[Int[Tensor, "batch kept"], Float[np.ndarray, "batch kept"], Filled]:
    """The new nodes whose first slot would be among the `budget` best so far, and its value.

    Rows are padded with `NO_NODE` and 0.
    """
    reached = growth.builder.fields.path_log_probs
    kept, first, *now = loops.worth_expanding(reached, new.numpy(), values, *filled, budget)
    return torch.from_numpy(kept), first, Filled(*now)


def best_nodes(values: Float[np.ndarray, "batch node"], budget: int) -> Int[Tensor, "batch kept"]:
    """The root and the nodes in the `budget` best slots; ancestors and earlier siblings win ties."""
    return torch.from_numpy(loops.best_nodes(values, budget))

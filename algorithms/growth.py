"""Steps that tree algorithms share: making children, keeping the likeliest nodes, handing over the draft."""

from functools import cached_property
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from algorithms.base import Drafter, SelectiveDrafter
from algorithms.loops import best_places, candidates_at, compacted, places_in
from backend.arrays import on_host, pick
from backend.errors import TreebenchError
from backend.random import RandomStream
from backend.sampling import Sampler
from backend.top_k import top_k
from backend.tree import NO_NODE, Draft, Proposal, TokenTree, TreeBuilder

CHILDREN = {
    "top_k": Proposal.DETERMINISTIC,
    "iid": Proposal.IID,
    "without_replacement": Proposal.WITHOUT_REPLACEMENT,
}
WHOLE_LAW: dict[str, Any] = {"draft_temperature": 1.0, "draft_top_k": None, "draft_top_p": None}


class Children(NamedTuple):
    """How the children of a node come about: its likeliest tokens, or draws from its law.

    Draws are taken at the draft temperature, top-k and top-p; likeliest tokens are scored at temperature 1.
    """

    proposal: Proposal
    sampler: Sampler

    @classmethod
    def named(
        cls, name: str, draft_temperature: float, draft_top_k: int | None = None, draft_top_p: float | None = None
    ) -> "Children":
        if name not in CHILDREN:
            raise TreebenchError(f"children must be one of {', '.join(CHILDREN)}, not {name!r}")
        if CHILDREN[name] is not Proposal.DETERMINISTIC and draft_temperature <= 0:
            raise TreebenchError(f"children={name} draws tokens and needs a draft_temperature above 0")
        return cls(CHILDREN[name], Sampler(draft_temperature, draft_top_k, draft_top_p))


class Offspring(NamedTuple):
    """Candidate children of some nodes, in draw order; log-probability -inf where there is none."""

    tokens: Int[Tensor, "batch frontier width"]
    log_probs: Float[Tensor, "batch frontier width"]


class Growth:
    """A tree in the making: asks the drafter, adds children, remembers the laws that they were drawn from.

    Topology lives on the host: `nodes` here and in the steps below are tensors of the CPU, whatever the device.
    """

    def __init__(self, tree: TokenTree, drafter: Drafter, children: Children, random: RandomStream) -> None:
        self.builder = TreeBuilder(tree)
        self.drafter = drafter
        self.children = children
        self._random = random
        self.law_nodes: list[Int[Tensor, "batch frontier"]] = []
        self.laws: list[Float[Tensor, "batch frontier vocab"]] = []

    @property
    def tree(self) -> TokenTree:
        """All nodes so far, on the drafter's device."""
        return self.builder.tree

    @property
    def root(self) -> Int[Tensor, "batch 1"]:
        return torch.zeros(len(self.builder.fields.tokens), 1, dtype=torch.int64)

    @property
    def nodes(self) -> Int[Tensor, "batch node"]:
        """All nodes so far, `NO_NODE` where a row has none."""
        return torch.from_numpy(np.where(self.builder.exists, np.arange(self.builder.num_nodes), NO_NODE))

    @cached_property
    def random(self) -> RandomStream:
        return self._random.of("draft")

    def propose(self, nodes: Int[Tensor, "batch frontier"], width: int) -> Offspring:
        """Ask the drafter once about all the nodes; `width` candidate children each."""
        there = nodes.to(self.builder.device)
        if self.children.proposal is not Proposal.DETERMINISTIC:
            return self._draw(nodes, self.drafter.expand(self.tree, there), width)
        if hasattr(self.drafter, "likeliest"):
            log_probs, tokens = cast(SelectiveDrafter, self.drafter).likeliest(self.tree, there, width)
        else:
            log_probs, tokens = top_k(self.drafter.expand(self.tree, there), width)
        return Offspring(tokens.cpu(), log_probs.cpu())

    def _draw(self, nodes: Tensor, log_probs: Float[Tensor, "batch frontier vocab"], width: int) -> Offspring:
        width = min(width, log_probs.shape[2])
        laws = self.children.sampler.probs(log_probs)
        self.law_nodes.append(nodes)
        self.laws.append(laws)
        iid = self.children.proposal is Proposal.IID
        draw = self.random.draw_iid if iid else self.random.draw_without_replacement
        tokens = draw(laws, width, self._ranks(nodes).to(laws.device))
        drawn = laws.gather(2, tokens.clamp(min=0)).log()
        return Offspring(tokens.clamp(min=0).cpu(), drawn.masked_fill(tokens < 0, -torch.inf).cpu())

    def _ranks(self, nodes: Int[Tensor, "batch frontier"]) -> Int[Tensor, "batch frontier"]:
        """A node's number among its own row's nodes: it counts draws, which must not depend on the other rows."""
        if not self.builder.has_gaps:
            return nodes
        ranks = self.builder.exists.cumsum(1) - 1
        return torch.from_numpy(pick(ranks, nodes.numpy().clip(min=0)))

    def add(self, nodes: Int[Tensor, "batch frontier"], offspring: Offspring) -> Int[Tensor, "batch new"]:
        """Make the candidates nodes; returns them, `NO_NODE` where there was none."""
        tokens, log_probs = (on_host(values).reshape(len(nodes), -1) for values in offspring)
        parents = nodes.numpy().repeat(offspring.tokens.shape[2], axis=1)
        return torch.from_numpy(self.builder.add(parents, tokens, log_probs))

    def add_some(
        self, nodes: Int[Tensor, "batch frontier"], offspring: Offspring, places: Int[np.ndarray, "#batch taken"]
    ) -> Int[Tensor, "batch taken"]:
        """As `add`, of the candidates at some places of the flattened offspring only, none at `NO_NODE`."""
        chosen = candidates_at(places, nodes.numpy(), on_host(offspring.tokens), on_host(offspring.log_probs))
        return torch.from_numpy(self.builder.add(*chosen))

    def expand(self, nodes: Int[Tensor, "batch frontier"], width: int) -> Int[Tensor, "batch new"]:
        """`propose` and `add` in one; nothing to expand gives nothing."""
        nodes = compact(nodes)
        return self.add(nodes, self.propose(nodes, width)) if nodes.shape[1] else nodes

    def reached(self, nodes: Int[Tensor, "batch node"]) -> Float[np.ndarray, "batch node"]:
        """Path log-probabilities of some nodes; -inf where there is none."""
        return pick(self.builder.fields.path_log_probs, nodes.numpy())

    def likeliest(self, among: Int[Tensor, "batch node"], count: int) -> Int[Tensor, "batch kept"]:
        """The nodes with the highest path probability, in the order of `among`; ties go to the earlier of them."""
        best = best_places(self.reached(among), count)
        return torch.from_numpy(pick(among.numpy(), best))

    def draft(self, nodes: Int[Tensor, "batch node"] | None = None) -> Draft:
        """Hand over the chosen nodes, all of them by default."""
        nodes = compact(self.nodes if nodes is None else nodes)
        device, proposal = self.builder.device, self.children.proposal
        if proposal is Proposal.DETERMINISTIC:
            return Draft(self.tree, nodes.to(device), proposal)
        laws = self.laws[0] if len(self.laws) == 1 else torch.cat(self.laws, 1)
        return Draft(self.tree, nodes.to(device), proposal, laws, self._law_places(nodes).to(device))

    def _law_places(self, nodes: Int[Tensor, "batch width"]) -> Int[Tensor, "batch width"]:
        expanded = np.concatenate([some.numpy() for some in self.law_nodes], 1)
        return torch.from_numpy(places_in(expanded, nodes.numpy(), self.builder.num_nodes))


def compact(nodes: Int[Tensor, "batch node"]) -> Int[Tensor, "batch width"]:
    """Ascending without columns that are `NO_NODE` in every row; rows begin with their first node."""
    return torch.from_numpy(compacted(nodes.numpy()))


def add_likeliest(growth: Growth, nodes: Int[Tensor, "batch frontier"], count: int) -> Int[Tensor, "batch new"]:
    """Of `count` candidate children per node, add the `count` of highest path probability over all the nodes."""
    offspring = growth.propose(nodes, count)
    path = growth.reached(nodes)[:, :, None] + on_host(offspring.log_probs)
    return growth.add_some(nodes, offspring, best_places(path.reshape(len(path), -1), count))

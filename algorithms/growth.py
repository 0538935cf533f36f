"""Steps that tree algorithms share: making children, keeping the likeliest nodes, handing over the draft."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algorithms.base import Drafter
from backend.errors import TreebenchError
from backend.random import RandomStream
from backend.sampling import Sampler
from backend.tree import NO_NODE, Draft, Proposal, TokenTree

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
    """A tree in the making: asks the drafter, adds children, remembers the laws that they were drawn from."""

    def __init__(self, tree: TokenTree, drafter: Drafter, children: Children, random: RandomStream) -> None:
        self.tree = tree
        self.drafter = drafter
        self.children = children
        self.random = random.of("draft")
        self.law_nodes: list[Int[Tensor, "batch frontier"]] = []
        self.laws: list[Float[Tensor, "batch frontier vocab"]] = []

    @property
    def root(self) -> Int[Tensor, "batch 1"]:
        return torch.zeros_like(self.tree.tokens[:, :1])

    @property
    def nodes(self) -> Int[Tensor, "batch node"]:
        """All nodes so far, `NO_NODE` where a row has none."""
        every = torch.arange(self.tree.num_nodes, device=self.tree.tokens.device).expand_as(self.tree.tokens)
        return every.masked_fill(~self.tree.exists, NO_NODE)

    def propose(self, nodes: Int[Tensor, "batch frontier"], width: int) -> Offspring:
        """Ask the drafter once about all the nodes; `width` candidate children each."""
        log_probs = self.drafter.expand(self.tree, nodes)
        width = min(width, log_probs.shape[2])
        if self.children.proposal is Proposal.DETERMINISTIC:
            top = log_probs.topk(width, dim=2)
            return Offspring(top.indices, top.values)
        laws = self.children.sampler.probs(log_probs)
        self.law_nodes.append(nodes)
        self.laws.append(laws)
        iid = self.children.proposal is Proposal.IID
        draw = self.random.draw_iid if iid else self.random.draw_without_replacement
        tokens = draw(laws, width, self._ranks(nodes))
        drawn = laws.gather(2, tokens.clamp(min=0)).log()
        return Offspring(tokens.clamp(min=0), drawn.masked_fill(tokens < 0, -torch.inf))

    def _ranks(self, nodes: Int[Tensor, "batch frontier"]) -> Int[Tensor, "batch frontier"]:
        """A node's number among its own row's nodes: it counts draws, which must not depend on the other rows."""
        return (self.tree.exists.cumsum(1) - 1).gather(1, nodes.clamp(min=0))

    def add(self, nodes: Int[Tensor, "batch frontier"], offspring: Offspring) -> Int[Tensor, "batch new"]:
        """Make the candidates nodes; returns them, `NO_NODE` where there was none."""
        tokens, log_probs = offspring.tokens, offspring.log_probs
        exists = ((nodes != NO_NODE)[:, :, None] & (log_probs != -torch.inf)).flatten(1)
        parents = nodes[:, :, None].expand_as(tokens).flatten(1).masked_fill(~exists, NO_NODE)
        first = self.tree.num_nodes
        self.tree = self.tree.add(parents, tokens.flatten(1), log_probs.flatten(1))
        new = torch.arange(first, self.tree.num_nodes, device=parents.device).expand_as(parents)
        return new.masked_fill(~exists, NO_NODE)

    def expand(self, nodes: Int[Tensor, "batch frontier"], width: int) -> Int[Tensor, "batch new"]:
        """`propose` and `add` in one; nothing to expand gives nothing."""
        nodes = compact(nodes)
        return self.add(nodes, self.propose(nodes, width)) if nodes.shape[1] else nodes

    def likeliest(self, among: Int[Tensor, "batch node"], count: int) -> Int[Tensor, "batch kept"]:
        """The nodes with the highest path probability, ascending. Ties go to the earlier node, so that parents stay."""
        path = self.tree.path_log_probs.gather(1, among.clamp(min=0)).masked_fill(among == NO_NODE, -torch.inf)
        return ascending(among.gather(1, best_places(path, count)))

    def draft(self, nodes: Int[Tensor, "batch node"] | None = None) -> Draft:
        """Hand over the chosen nodes, all of them by default."""
        nodes = compact(self.nodes if nodes is None else nodes)
        return Draft(self.tree, nodes, self.children.proposal, self._laws_of(nodes))

    def _laws_of(self, nodes: Int[Tensor, "batch width"]) -> Float[Tensor, "batch width vocab"] | None:
        if self.children.proposal is Proposal.DETERMINISTIC:
            return None
        laws = torch.cat(self.laws, 1)
        laws = torch.cat([laws, torch.zeros_like(laws[:, :1])], 1)  # leaves: nothing was drawn
        places = torch.full_like(self.tree.tokens, laws.shape[1] - 1)
        expanded = torch.cat(self.law_nodes, 1)
        order = torch.arange(expanded.shape[1], device=nodes.device).expand_as(expanded)
        places = torch.nn.functional.pad(places, (0, 1), value=laws.shape[1] - 1)
        places.scatter_(1, expanded.masked_fill(expanded == NO_NODE, places.shape[1] - 1), order)
        return laws.gather(1, places.gather(1, nodes.clamp(min=0))[:, :, None].expand(-1, -1, laws.shape[2]))


def best_places(values: Float[Tensor, "batch node"], count: int) -> Int[Tensor, "batch kept"]:
    """Places of the largest values, largest first; ties go to the earlier place."""
    return values.sort(stable=True, dim=1, descending=True).indices[:, :count]


def ascending(nodes: Int[Tensor, "batch node"]) -> Int[Tensor, "batch node"]:
    """Sorted, `NO_NODE` last."""
    last = torch.iinfo(nodes.dtype).max
    ordered = nodes.masked_fill(nodes == NO_NODE, last).sort(1).values
    return ordered.masked_fill(ordered == last, NO_NODE)


def compact(nodes: Int[Tensor, "batch node"]) -> Int[Tensor, "batch width"]:
    """Ascending without columns that are `NO_NODE` in every row."""
    return ascending(nodes)[:, : int((nodes != NO_NODE).sum(1).max())]


def take(
    nodes: Int[Tensor, "batch frontier"], offspring: Offspring, places: Int[Tensor, "batch taken"]
) -> tuple[Int[Tensor, "batch taken"], Offspring]:
    """The candidates at `places` of the flattened offspring, for `Growth.add`: their parents, one child each."""
    parents = nodes.gather(1, places // offspring.tokens.shape[2])
    tokens, log_probs = (values.flatten(1).gather(1, places)[:, :, None] for values in offspring)
    return parents, Offspring(tokens, log_probs)


def add_likeliest(growth: Growth, nodes: Int[Tensor, "batch frontier"], count: int) -> Int[Tensor, "batch new"]:
    """Of `count` candidate children per node, add the `count` of highest path probability over all the nodes."""
    offspring = growth.propose(nodes, count)
    reached = growth.tree.path_log_probs.gather(1, nodes.clamp(min=0)).masked_fill(nodes == NO_NODE, -torch.inf)
    path = (reached[:, :, None] + offspring.log_probs).flatten(1)
    return growth.add(*take(nodes, offspring, best_places(path, count).sort(1).values))

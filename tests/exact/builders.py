"""Small tree builders, one per kind of proposal, that draw with the production primitives.

Each takes a drafter whose law it drafts from; the flags plant the bugs that the enumeration has to catch.
"""

from fractions import Fraction
from heapq import heappop, heappush
from typing import Any

import torch
from torch import Tensor

from backend.random import NO_TOKEN, RandomStream
from backend.sampling import Sampler
from backend.tree import NO_NODE, Accepted, Draft, Proposal, TokenTree

from .models import LawDrafter
from .rational import ExactTensor

SAMPLER = Sampler(1.0)


class Builder:
    """Grows `widths[d]` children under every node of depth d."""

    def __init__(self, drafter: LawDrafter, widths: tuple[int, ...]) -> None:
        self.drafter = drafter
        self.widths = widths

    def grow(self, tree: TokenTree, random: RandomStream) -> Draft:
        frontier = torch.zeros_like(tree.tokens)
        laws = []
        for width in self.widths:
            laws.append(SAMPLER.probs(self.drafter.expand(tree, frontier)))
            children = self.children(laws[-1], width, frontier, random)
            tree, frontier = add_children(tree, frontier, children, laws[-1])
        laws.append(SAMPLER.probs(self.drafter.expand(tree, frontier)))
        return self.draft(tree, torch.cat(laws, 1))

    def children(self, laws: Tensor, width: int, frontier: Tensor, random: RandomStream) -> Tensor:
        raise NotImplementedError

    def draft(self, tree: TokenTree, laws: Tensor) -> Draft:
        raise NotImplementedError

    def observe(self, draft: Draft, accepted: Accepted) -> None: ...


def add_children(tree: TokenTree, parents: Tensor, tokens: Tensor, laws: Tensor) -> tuple[TokenTree, Tensor]:
    """Add (batch, node, k) tokens under their parents; also the new nodes. `NO_TOKEN` leaves a place empty."""
    of = parents[:, :, None].expand(tokens.shape).masked_fill(tokens == NO_TOKEN, NO_NODE).flatten(1)
    missing = of == NO_NODE
    log_probs = floats(laws).gather(2, tokens.clamp(min=0)).flatten(1).log()
    grown = tree.add(of, tokens.flatten(1).clamp(min=0), log_probs)
    new = torch.arange(tree.num_nodes, grown.num_nodes).expand(of.shape)
    return grown, new.masked_fill(missing, NO_NODE)


def floats(laws: Tensor) -> Tensor:
    return laws.floats() if isinstance(laws, ExactTensor) else laws


def keep_nodes(tree: TokenTree, keep: Tensor, laws: Tensor | None, proposal: Proposal) -> Draft:
    """The draft of the nodes with `keep`, packed to the front; closed under parents if `keep` is not."""
    for _ in range(tree.height):
        keep = keep & keep.gather(1, tree.parents.clamp(min=0)) & tree.exists
    order = (~keep).int().argsort(dim=1, stable=True)
    nodes = order.masked_fill(~keep.gather(1, order), NO_NODE)[:, : int(keep.sum(1).max())]
    if laws is not None:
        laws = laws.gather(1, nodes.clamp(min=0)[:, :, None].expand(-1, -1, laws.shape[2]))
    return Draft(tree, nodes, proposal, laws)


class TopK(Builder):
    """Deterministic: the likeliest tokens. `claims` another proposal for them, to plant a bug."""

    claims: Proposal = Proposal.DETERMINISTIC
    law_over_children = False

    def children(self, laws: Tensor, width: int, frontier: Tensor, random: RandomStream) -> Tensor:
        tokens = floats(laws).argsort(dim=-1, descending=True, stable=True)[..., :width]
        return tokens.masked_fill((frontier == NO_NODE)[..., None], NO_TOKEN)

    def draft(self, tree: TokenTree, laws: Tensor) -> Draft:
        return keep_nodes(tree, tree.exists, None, Proposal.DETERMINISTIC)


class Sampled(Builder):
    """Independent draws, duplicates kept, or draws without replacement, in draw order."""

    def __init__(self, drafter: LawDrafter, widths: tuple[int, ...], proposal: Proposal) -> None:
        super().__init__(drafter, widths)
        self.proposal = proposal

    def children(self, laws: Tensor, width: int, frontier: Tensor, random: RandomStream) -> Tensor:
        counters = frontier.clamp(min=0)
        draw = random.draw_iid if self.proposal is Proposal.IID else random.draw_without_replacement
        return draw(laws, width, counters).masked_fill((frontier == NO_NODE)[..., None], NO_TOKEN)

    def draft(self, tree: TokenTree, laws: Tensor) -> Draft:
        return keep_nodes(tree, tree.exists, laws, self.proposal)


class Heap:
    """DySpec's Algorithm 1: always draw from the slot of largest value, decided before the token is known."""

    def __init__(self, drafter: LawDrafter, budget: int) -> None:
        self.drafter = drafter
        self.budget = budget

    def grow(self, tree: TokenTree, random: RandomStream) -> Draft:
        laws = SAMPLER.probs(self.drafter.expand(tree, torch.zeros_like(tree.tokens)))
        heaps: list[Any] = [[(-Fraction(1), 0, 0)] for _ in tree.tokens]  # (-value, time, parent)
        left = laws[:, :1]
        lefts = [left]  # what is left of the law of each node
        for draw in range(self.budget):
            slots = [heappop(heap) if heap else (Fraction(0), 0, NO_NODE) for heap in heaps]
            parents = torch.tensor([parent for _, _, parent in slots])[:, None]
            weights = torch.stack([lefts[max(parent, 0)][row, 0] for row, (_, _, parent) in enumerate(slots)])[:, None]
            tokens = random.choose(weights, draw)
            tree = tree.add(parents, tokens, torch.zeros_like(tokens).float())
            own = SAMPLER.probs(self.drafter.expand(tree, torch.full_like(parents, tree.num_nodes - 1)))
            laws = torch.cat([laws, own], 1)
            lefts.append(own.clone())
            for row, (value, _, parent) in enumerate(slots):
                if parent != NO_NODE:
                    self._push(heaps[row], lefts[parent][row, 0], -value, (draw, parent, tree), int(tokens[row, 0]))
        return keep_nodes(tree, tree.exists, laws, Proposal.WITHOUT_REPLACEMENT)

    def _push(self, heap: Any, left: Any, value: Fraction, made: tuple[int, int, TokenTree], token: int) -> None:
        draw, parent, tree = made
        masses = list(left.values())
        share = masses[token] / sum(masses)
        left[token] = 0.0
        if share < 1:
            heappush(heap, (-value * (1 - share), 2 * draw + 1, parent))
        heappush(heap, (-value * share, 2 * draw + 2, tree.num_nodes - 1))

    def observe(self, draft: Draft, accepted: Accepted) -> None: ...


class Layerwise:
    """The same tree, one draft call per layer: draw every child, keep the largest slots by value before the draw."""

    proposal = Proposal.WITHOUT_REPLACEMENT

    def __init__(self, drafter: LawDrafter, budget: int, depth: int) -> None:
        self.drafter = drafter
        self.budget = budget
        self.depth = depth

    def grow(self, tree: TokenTree, random: RandomStream) -> Draft:
        frontier = torch.zeros_like(tree.tokens)
        values = torch.ones(tree.tokens.shape, dtype=torch.float64)  # probability of the path to a node
        slots = torch.full_like(values, torch.inf)  # value before the draw
        laws = []
        for _ in range(self.depth):
            laws.append(SAMPLER.probs(self.drafter.expand(tree, frontier)))
            vocabulary = laws[-1].shape[-1]
            tokens = random.draw_without_replacement(laws[-1], vocabulary, frontier.clamp(min=0))
            tokens = tokens.masked_fill((frontier == NO_NODE)[..., None], NO_TOKEN)
            chances = floats(laws[-1]).double().gather(2, tokens.clamp(min=0)).masked_fill(tokens == NO_TOKEN, 0)
            reached = values.gather(1, frontier.clamp(min=0))[:, :, None]
            slots = torch.cat([slots, self.slot_values(reached, chances).flatten(1)], 1)
            values = torch.cat([values, (reached * chances).flatten(1)], 1)
            tree, frontier = add_children(tree, frontier, tokens, laws[-1])
        laws.append(SAMPLER.probs(self.drafter.expand(tree, frontier)))
        return self.select(tree, slots.round(decimals=12), torch.cat(laws, 1))

    def slot_values(self, reached: Tensor, chances: Tensor) -> Tensor:
        return reached * (1 - (chances.cumsum(-1) - chances))

    def select(self, tree: TokenTree, slots: Tensor, laws: Tensor) -> Draft:
        """The root and the `budget` largest slots; ancestors and earlier siblings win ties, having smaller numbers."""
        order = slots.masked_fill(~tree.exists, -1).argsort(dim=1, descending=True, stable=True)[:, : self.budget + 1]
        keep = torch.zeros_like(tree.exists).scatter(1, order, torch.ones_like(order, dtype=torch.bool))
        return keep_nodes(tree, keep, laws, self.proposal)

    def observe(self, draft: Draft, accepted: Accepted) -> None: ...

"""Planted bugs: tree builders and random sources that are wrong in one respect."""

import torch

from backend.random import NO_TOKEN
from backend.tree import Proposal

from .branching import EnumeratingStream
from .builders import SAMPLER, Layerwise, Sampled, TopK, floats, keep_nodes

WITHOUT = Proposal.WITHOUT_REPLACEMENT


class TopKWithLaws(TopK):
    """Top-k children that pass themselves off as drawn."""

    def __init__(self, drafter, widths, claims=WITHOUT, renormalised=False):
        super().__init__(drafter, widths)
        self.claims, self.renormalised = claims, renormalised

    def draft(self, tree, laws):
        if self.renormalised:
            beyond = floats(laws).argsort(dim=-1, descending=True, stable=True)[..., self.widths[0] :]
            laws = SAMPLER.probs(laws.scatter(-1, beyond, 0.0).log())
        return keep_nodes(tree, tree.exists, laws, self.claims)


class Claims(Sampled):
    """Drawn in one way, declared as drawn in another."""

    def __init__(self, drafter, widths, proposal, claims):
        super().__init__(drafter, widths, proposal)
        self.claims = claims

    def draft(self, tree, laws):
        return super().draft(tree, laws)._replace(proposal=self.claims)


class Resorted(Sampled):
    def children(self, laws, width, frontier, random):
        tokens = super().children(laws, width, frontier, random)
        chances = floats(laws).gather(2, tokens.clamp(min=0)).masked_fill(tokens == NO_TOKEN, -1)
        return tokens.gather(2, chances.argsort(dim=-1, descending=True, stable=True))


class Reversed(Sampled):
    def children(self, laws, width, frontier, random):
        return super().children(laws, width, frontier, random).flip(-1)


class DropsUnlikely(Sampled):
    def children(self, laws, width, frontier, random):
        tokens = super().children(laws, width, frontier, random)
        return tokens.masked_fill(floats(laws).gather(2, tokens.clamp(min=0)) < 0.0999, NO_TOKEN)


class DropsDuplicates(Sampled):
    def children(self, laws, width, frontier, random):
        tokens = super().children(laws, width, frontier, random)
        same = (tokens[..., :, None] == tokens[..., None, :]).tril(-1).any(-1)
        return tokens.masked_fill(same, NO_TOKEN)


class PrunesByPath(Sampled):
    """Keeps the likeliest of the drawn nodes, as EAGLE-2 does with nodes that it has not drawn."""

    def draft(self, tree, laws):
        order = tree.path_log_probs.argsort(dim=1, descending=True, stable=True)[:, :4]
        keep = torch.zeros_like(tree.exists).scatter(1, order, torch.ones_like(order, dtype=torch.bool))
        return keep_nodes(tree, keep, laws, self.proposal)


class TopPlusOneDrawn(Sampled):
    """The likeliest tokens but one, then one drawn from the others."""

    def children(self, laws, width, frontier, random):
        top = floats(laws).argsort(dim=-1, descending=True, stable=True)[..., : width - 1]
        rest = laws.scatter(-1, top, 0.0)
        return torch.cat([top, random.draw_without_replacement(rest, 1, frontier.clamp(min=0))], -1)


class StaleNoise(Sampled):
    """Draws with the noise of the first step in every step."""

    first = None

    def grow(self, tree, random):
        assert isinstance(random, EnumeratingStream)
        self.first = self.first or random.label
        return super().grow(tree, EnumeratingStream(random.keys, random.replays, self.first))


class CapsAfterDraw(Layerwise):
    """Keeps the nodes whose own probability is largest, which the drawn token decides."""

    def select(self, tree, slots, laws):
        return super().select(tree, tree.path_log_probs.masked_fill(~tree.exists, -99.0).double(), laws)


class PricesByExpectation(Layerwise):
    """Values a slot by the expected acceptance of its draw: not monotone along a path."""

    def slot_values(self, reached, chances):
        left = chances.flip(-1).cumsum(-1).flip(-1)
        return reached * (chances**2).flip(-1).cumsum(-1).flip(-1) / left.clamp(min=1e-9)


class ReusesAcceptNoise(EnumeratingStream):
    """Draws the residual with the uniform number that has just rejected a token."""

    def choose(self, weights, counter):
        rejected = EnumeratingStream(self.keys, self.replays, (*self.label[:-1], "accept"))
        known = [dict(replay.uniforms) for replay in self.replays]
        for replay, uniforms in zip(self.replays, known, strict=True):
            replay.uniforms[(*rejected.label, 0, 0)] = uniforms[(*rejected.label, 1)]
        return EnumeratingStream.choose(rejected, weights, 0)


class DraftNoiseForResidual(EnumeratingStream):
    """Draws the residual with the noise that drew the child."""

    def choose(self, weights, counter):
        return EnumeratingStream.choose(EnumeratingStream(self.keys, self.replays, (0, "draft")), weights, 0)

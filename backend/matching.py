"""Acceptance without a walk: every node gets the target's verdict at once and the deepest intact path wins.

Nothing here waits for the device: no step of it brings a number to the host.
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from backend.ops import Ops
from backend.random import RandomStream
from backend.sampling import Sampler, likeliest
from backend.tree import NO_NODE, WORD_BITS, Accepted, Draft, Proposal

if TYPE_CHECKING:
    from backend.acceptance import NumericEvents


def greedy(
    draft: Draft,
    logits: Float[Tensor, "batch width vocab"],
    sampler: Sampler,
    random: RandomStream,
    events: "NumericEvents",
    ops: Ops,
) -> Accepted:
    """Follow the target's largest logit; equals greedy decoding, whatever the tree."""
    picks, valid = likeliest(logits)
    if valid is not None:
        events.count("invalid_rows", draft.exists & ~valid)
    return ops.follow(draft, picks)


def target_sampling(
    draft: Draft,
    logits: Float[Tensor, "batch width vocab"],
    sampler: Sampler,
    random: RandomStream,
    events: "NumericEvents",
    ops: Ops,
) -> Accepted:
    """Draw one token per node from the target and follow it; lossless for any tree that the draws did not shape."""
    probs = sampler.probs(logits)
    events.count("invalid_rows", draft.exists & ~(probs.sum(-1) > 0))
    return ops.follow(draft, random.of("accept").choose(probs, _places(draft)))


def typical_lossy(
    draft: Draft,
    logits: Float[Tensor, "batch width vocab"],
    sampler: Sampler,
    random: RandomStream,
    events: "NumericEvents",
    ops: Ops,
    *,
    epsilon: float,
    delta: float,
) -> Accepted:
    """Medusa's typical acceptance (Cai et al., 2024): keep what the target finds plausible. NOT lossless.

    A token passes if its probability exceeds min(epsilon, delta * exp(-entropy)); the longest path wins, ties go to
    the likelier one.
    """
    probs = sampler.probs(logits)
    events.count("invalid_rows", draft.exists & ~(probs.sum(-1) > 0))
    entropies = torch.special.entr(probs).sum(-1)
    of = draft.parent_places().clamp(min=0)
    own = probs[_rows(draft), of, draft.of_nodes(draft.tree.tokens)]
    passes = own > (delta * torch.exp(-entropies)).clamp(max=epsilon).gather(1, of)
    winners = _likeliest_of_deepest(draft, intact(draft, passes | (_places(draft) == 0)), own)
    bonus = random.of("residual").choose(probs[_rows(draft)[:, 0], winners], winners)
    return Accepted(path_to(draft, winners), bonus)


def follow(draft: Draft, picks: Int[Tensor, "batch width"]) -> Accepted:
    """The deepest path of the draft whose tokens are their parents' picks, and the pick where it ends."""
    matches = _matches(draft, picks)
    if draft.proposal is Proposal.IID:
        matches &= _first_of_token(draft)  # taking the better of two copies of a token would look at their draws
    winners = deepest(draft, intact(draft, matches))
    return Accepted(path_to(draft, winners), picks.gather(1, winners[:, None]).squeeze(1))


def intact(draft: Draft, matches: Bool[Tensor, "batch width"]) -> Bool[Tensor, "batch width"]:
    """Whether a node and all its ancestors match: no bit of its ancestor set stands for a node that does not."""
    nodes = draft.nodes.clamp(min=0)
    words = draft.tree.ancestors.gather(1, nodes[:, :, None].expand(-1, -1, draft.tree.ancestors.shape[2]))
    bits = torch.ones_like(nodes) << (nodes % WORD_BITS)
    broken = torch.zeros_like(words[:, 0]).scatter_add(
        1, nodes // WORD_BITS, bits.masked_fill(matches | ~draft.exists, 0)
    )
    return ((words & broken[:, None]) == 0).all(-1) & draft.exists


def deepest(draft: Draft, candidates: Bool[Tensor, "batch width"]) -> Int[Tensor, " batch"]:
    """The place of the deepest candidate, the first of several; 0 where there is none."""
    return draft.of_nodes(draft.tree.depths).masked_fill(~candidates, -1).argmax(1)


def path_to(draft: Draft, places: Int[Tensor, " batch"]) -> Int[Tensor, "batch accepted"]:
    """The nodes from the root to a place of `draft.nodes`, padded to `tree.height + 1`; a node's depth is its index."""
    height = draft.tree.height
    on_path = draft.tree.is_ancestor(draft.nodes, draft.nodes.gather(1, places[:, None])).squeeze(1)
    index = draft.of_nodes(draft.tree.depths).masked_fill(~on_path, height + 1)
    path = torch.full_like(draft.nodes[:, :1], NO_NODE).repeat(1, height + 2)
    return path.scatter(1, index, draft.nodes)[:, : height + 1]


def _matches(draft: Draft, picks: Tensor) -> Tensor:
    picked = picks.gather(1, draft.parent_places().clamp(min=0))
    return (draft.of_nodes(draft.tree.tokens) == picked) | (_places(draft) == 0)


def _first_of_token(draft: Draft) -> Tensor:
    tokens, parents = draft.of_nodes(draft.tree.tokens), draft.parent_places()
    same = (tokens[:, :, None] == tokens[:, None]) & (parents[:, :, None] == parents[:, None])
    return ~same.tril(-1).any(-1)


def _likeliest_of_deepest(draft: Draft, candidates: Tensor, probs: Tensor) -> Tensor:
    depths = draft.of_nodes(draft.tree.depths).masked_fill(~candidates, -1)
    on_path = draft.tree.is_ancestor(draft.nodes, draft.nodes) & (_places(draft) > 0)
    scores = probs.clamp(min=1e-30).log()[:, None].masked_fill(~on_path, 0.0).sum(-1)
    return scores.masked_fill(depths < depths.amax(1, keepdim=True), -torch.inf).argmax(1)


def _places(draft: Draft) -> Tensor:
    return torch.arange(draft.nodes.shape[1], device=draft.nodes.device)


def _rows(draft: Draft) -> Tensor:
    return torch.arange(draft.nodes.shape[0], device=draft.nodes.device)[:, None]

"""Acceptance of sampled drafts by rejection: a program per sequence, one pass over the nodes, no word to the host."""

from typing import TYPE_CHECKING, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from backend.ops.launch import launch
from backend.random import RandomStream
from backend.sampling import Sampler
from backend.tree import Draft, Proposal

if TYPE_CHECKING:
    from backend.acceptance import NumericEvents

BLOCK = 1024
WARPS = 8


@no_type_check
@triton.jit
def _copy(FROM, TO, vocab, BLOCK: tl.constexpr):
    for start in range(0, vocab, BLOCK):
        token = start + tl.arange(0, BLOCK)
        tl.store(TO + token, tl.load(FROM + token, mask=token < vocab, other=0.0), mask=token < vocab)
    tl.debug_barrier()


@no_type_check
@triton.jit
def _scale(WEIGHTS, total, vocab, BLOCK: tl.constexpr):
    for start in range(0, vocab, BLOCK):
        token = start + tl.arange(0, BLOCK)
        weight = tl.load(WEIGHTS + token, mask=token < vocab, other=0.0)
        tl.store(WEIGHTS + token, tl.div_rn(weight, total), mask=token < vocab)
    tl.debug_barrier()


@no_type_check
@triton.jit
def _reject(LEFT, LAW, rejected, vocab, REPLACES: tl.constexpr, BLOCK: tl.constexpr):
    """LEFT becomes the target's mass above the law's, LAW loses the token unless drawn with REPLACEment.

    Returns whether no residual was left (LEFT is then kept) and whether LAW has any mass for a further draw.
    """
    residual, remaining = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocab, BLOCK):
        token = start + tl.arange(0, BLOCK)
        left = tl.load(LEFT + token, mask=token < vocab, other=0.0)
        law = tl.load(LAW + token, mask=token < vocab, other=0.0)
        residual += tl.maximum(left - law, 0.0)
        remaining += tl.where(token == rejected, 0.0, law)
    total, of_law = tl.sum(residual, 0), tl.sum(remaining, 0)
    tl.debug_barrier()
    for start in range(0, vocab, BLOCK):
        token = start + tl.arange(0, BLOCK)
        left = tl.load(LEFT + token, mask=token < vocab, other=0.0)
        law = tl.load(LAW + token, mask=token < vocab, other=0.0)
        above = tl.div_rn(tl.maximum(left - law, 0.0), tl.where(total > 0, total, 1.0))
        tl.store(LEFT + token, tl.where(total > 0, above, left), mask=token < vocab)
        if not REPLACES:
            struck = tl.where(token == rejected, 0.0, law)
            tl.store(LAW + token, tl.div_rn(struck, tl.where(of_law > 0, of_law, 1.0)), mask=token < vocab)
    tl.debug_barrier()
    return total, of_law


@no_type_check
@triton.jit(do_not_specialize=["width", "num_laws", "vocab"])
def walk_nodes(
    TARGETS, LAWS, LAW_PLACES, TOKENS, PARENTS, UNIFORMS, LEFT, LAW, AT, VANISHED, width, num_laws, vocab,
    REPLACES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (batch). Children come after their parents and in draw order, so one pass meets every try in its turn."""
    batch = tl.program_id(0).to(tl.int64)
    LEFT += batch * vocab
    LAW += batch * vocab
    LAW_PLACES += batch * width
    _copy(TARGETS + batch * width * vocab, LEFT, vocab, BLOCK)
    _copy(LAWS + (batch * num_laws + tl.load(LAW_PLACES)) * vocab, LAW, vocab, BLOCK)
    at, vanished, is_open = batch * 0, batch * 0, batch * 0 + 1
    for place in range(1, width):
        if (tl.load(PARENTS + batch * width + place) == at) & (is_open != 0):
            token = tl.load(TOKENS + batch * width + place)
            share, chance = tl.load(LEFT + token).to(tl.float64), tl.load(LAW + token).to(tl.float64)
            tl.debug_barrier()
            if tl.load(UNIFORMS + batch * width + place) * chance < share:
                at = batch * 0 + place
                _copy(TARGETS + (batch * width + place) * vocab, LEFT, vocab, BLOCK)
                _copy(LAWS + (batch * num_laws + tl.load(LAW_PLACES + place)) * vocab, LAW, vocab, BLOCK)
            else:
                total, of_law = _reject(LEFT, LAW, token, vocab, REPLACES, BLOCK)
                vanished += tl.where(total > 0, 0, 1)
                if not REPLACES:
                    is_open = tl.where(of_law > 0, is_open, 0)
    tl.store(AT + batch, at)
    tl.store(VANISHED + batch, vanished)


def walk(
    draft: Draft,
    logits: Float[Tensor, "batch width vocab"],
    sampler: Sampler,
    random: RandomStream,
    events: "NumericEvents",
) -> tuple[Int[Tensor, " batch"], Float[Tensor, "batch vocab"]]:
    """The place where each row's walk ends, and what is left there of the target's law; see the reference."""
    assert draft.laws is not None, "the rule has refused drafts without laws"
    targets, laws = sampler.probs(logits).contiguous(), draft.laws.contiguous()
    batch, width, vocab = targets.shape
    places = torch.arange(width, device=logits.device).expand(batch, -1).contiguous()
    law_places = places if draft.law_places is None else draft.law_places.clamp(min=0).contiguous()
    uniforms = random.of("accept").uniforms(places, 1).squeeze(-1).contiguous()
    left, law = torch.empty_like(targets[:, 0]), torch.empty_like(targets[:, 0])
    at, vanished = torch.empty(2, batch, dtype=torch.int64, device=logits.device)
    tokens, parents = draft.of_nodes(draft.tree.tokens), draft.parent_places().contiguous()
    launch(
        walk_nodes, (batch,), targets, laws, law_places, tokens, parents, uniforms, left, law, at, vanished, width,
        laws.shape[1], vocab, draft.proposal is Proposal.IID, BLOCK, num_warps=WARPS,
    )  # fmt: skip
    _count(events, draft, targets, at, vanished)
    return at, left


def _count(events: "NumericEvents", draft: Draft, targets: Tensor, at: Tensor, vanished: Tensor) -> None:
    """The walk has asked for the law of every node on its path, and of no other."""
    visited = draft.tree.is_ancestor(draft.nodes, draft.nodes.gather(1, at[:, None])).squeeze(1)
    events.count("invalid_rows", visited & ~(targets.sum(2) > 0))
    events.count("vanished_residuals", vanished)

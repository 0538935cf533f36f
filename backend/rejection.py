"""Acceptance of sampled drafts by rejection: every decision weighs the target against the law a token was drawn from.

Siblings are tried in draw order and each node of a step at most once, so a node's place numbers its random draws.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from backend.matching import path_to
from backend.ops import Ops
from backend.random import RandomStream
from backend.sampling import Sampler
from backend.tree import Accepted, Draft, Proposal

if TYPE_CHECKING:
    from backend.acceptance import NumericEvents


@dataclass(frozen=True)
class _Step:
    """What one verification step is given."""

    draft: Draft
    logits: Float[Tensor, "batch width vocab"]
    sampler: Sampler
    random: RandomStream
    events: "NumericEvents"

    def target(self, rows: Tensor, places: Tensor) -> Float[Tensor, "row vocab"]:
        """The target's law at one place of each row; only nodes that are visited pay for it."""
        probs = self.sampler.probs(self.logits[rows, places])
        self.events.count("invalid_rows", ~(probs.sum(1) > 0))
        return probs


def walk(
    draft: Draft,
    logits: Float[Tensor, "batch width vocab"],
    sampler: Sampler,
    random: RandomStream,
    events: "NumericEvents",
    ops: Ops,
) -> Accepted:
    """Try the children of a node in turn, descend into the first that is accepted, else emit from the residual.

    i.i.d. drafts: SpecInfer's multi-step sampling (Miao et al., 2024), the law stays as it is. Drafts without
    replacement: recursive rejection (Sequoia, Chen et al., 2024), the law loses each rejected token; once it is empty
    no further child is tried (DySpec, Xiong et al., 2024).
    """
    places, left = ops.walk(draft, logits, sampler, random, events)
    return Accepted(path_to(draft, places), random.of("residual").choose(left, places))


def walk_in_turn(
    draft: Draft,
    logits: Float[Tensor, "batch width vocab"],
    sampler: Sampler,
    random: RandomStream,
    events: "NumericEvents",
) -> tuple[Int[Tensor, " batch"], Float[Tensor, "batch vocab"]]:
    """The place where each row's walk ends, and what the rejections there have left of the target's law."""
    step = _Step(draft, logits, sampler, random, events)
    tokens, parents = draft.of_nodes(draft.tree.tokens), draft.parent_places()
    walk = _Walk.start(step)
    for place in range(1, draft.nodes.shape[1]):
        rows = ((parents[:, place] == walk.at) & walk.is_open).nonzero().squeeze(1)
        if len(rows):
            walk.try_child(step, rows, place, tokens[rows, place, None])
    return walk.at, walk.target


@dataclass
class _Walk:
    """Where each row stands: its node, what is left there of the target's law and of the draft's law."""

    at: Int[Tensor, " batch"]
    target: Float[Tensor, "batch vocab"]
    law: Float[Tensor, "batch vocab"]
    is_open: Bool[Tensor, " batch"]

    @classmethod
    def start(cls, step: _Step) -> "_Walk":
        rows = torch.arange(len(step.logits), device=step.logits.device)
        at = torch.zeros_like(rows)
        return cls(at, step.target(rows, at), step.draft.laws_at(rows, at), at == 0)

    def try_child(self, step: _Step, rows: Tensor, place: int, tokens: Tensor) -> None:
        accept = step.random.of("accept").select(rows)
        shares = self.target[rows].gather(1, tokens), self.law[rows].gather(1, tokens)
        accepted = accept.accepts(*shares, place).squeeze(1)
        self._descend(step, rows[accepted], place)
        self._reject(step, rows[~accepted], tokens[~accepted])

    def _descend(self, step: _Step, rows: Tensor, place: int) -> None:
        if len(rows):
            self.at[rows] = place
            self.target[rows] = step.target(rows, self.at[rows])
            self.law[rows] = step.draft.laws_at(rows, self.at[rows])

    def _reject(self, step: _Step, rows: Tensor, tokens: Tensor) -> None:
        if len(rows):
            residual, total = _residual(self.target[rows], self.law[rows])
            step.events.count("vanished_residuals", ~(total > 0))
            self.target[rows] = torch.where(total > 0, residual, self.target[rows])
            self.law[rows], remaining = _law_without(step.draft.proposal, self.law[rows], tokens)
            self.is_open[rows] = remaining


def _residual(target: Tensor, law: Tensor) -> tuple[Tensor, Tensor]:
    """The target's mass above the law's, normalised, and its total. Without rounding no rejection has a total of 0."""
    residual = (target - law).clamp_(min=0)
    total = residual.sum(1, keepdim=True)
    return residual.div_(total), total


def _law_without(proposal: Proposal, law: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The law of the next draw after a rejection, and whether there can be a next draw."""
    if proposal is Proposal.IID:
        return law, torch.ones_like(tokens[:, 0], dtype=torch.bool)
    law = law.scatter(1, tokens, 0.0)
    total = law.sum(1, keepdim=True)
    return law.div_(total).nan_to_num_(nan=0.0), (total > 0).squeeze(1)


def traversal(
    draft: Draft,
    logits: Float[Tensor, "batch width vocab"],
    sampler: Sampler,
    random: RandomStream,
    events: "NumericEvents",
    ops: Ops,
) -> Accepted:
    """Traversal verification (Weng et al., 2025): decide from the leaves up, so that a path is judged as a whole."""
    step = _Step(draft, logits, sampler, random, events)
    search = _Search.start(step)
    while len(active := (~search.is_done).nonzero().squeeze(1)):
        candidates = (search.parents[active] == search.at[active, None]) & ~search.is_visited[active]
        has_child = candidates.any(1)
        search.enter(step, active[has_child], candidates[has_child].int().argmax(1))
        search.leave(step, active[~has_child])
    return Accepted(path_to(draft, search.at), search.emit(step))


@dataclass
class _Search:
    """A depth-first search per row. `target` and `law` hold, by depth, what is left at the nodes of the open path."""

    tokens: Int[Tensor, "batch width"]
    parents: Int[Tensor, "batch width"]
    depths: Int[Tensor, "batch width"]
    at: Int[Tensor, " batch"]
    weights: Float[Tensor, "batch width"]  # acceptance weight of each node
    target: Float[Tensor, "batch depth vocab"]
    law: Float[Tensor, "batch depth vocab"]
    is_inner: Bool[Tensor, "batch width"]  # entered with a child: its laws are loaded
    is_visited: Bool[Tensor, "batch width"]
    is_done: Bool[Tensor, " batch"]

    @classmethod
    def start(cls, step: _Step) -> "_Search":
        draft, logits = step.draft, step.logits
        tokens, depths = draft.of_nodes(draft.tree.tokens), draft.of_nodes(draft.tree.depths)
        parents = draft.parent_places()
        stack = torch.zeros_like(logits[:, :1], dtype=torch.float32).repeat(1, draft.tree.height + 1, 1)
        nowhere = torch.zeros_like(tokens, dtype=torch.bool)
        return cls(
            tokens=tokens,
            parents=parents,
            depths=depths,
            at=torch.zeros_like(tokens[:, 0]),
            weights=torch.ones_like(logits[:, :, 0], dtype=torch.float32),
            target=stack,
            law=stack.clone(),
            is_inner=nowhere,
            is_visited=nowhere.clone(),
            is_done=nowhere[:, 0].clone(),
        )

    def enter(self, step: _Step, rows: Tensor, children: Tensor) -> None:
        """Go down to a child; its weight is settled by what its elder siblings have left."""
        if not len(rows):
            return
        self._load(step, rows[~self.is_inner[rows, self.at[rows]]])
        at, depths, tokens = self.at[rows], self.depths[rows, self.at[rows]], self.tokens[rows, children]
        target, law = self.target[rows, depths, tokens], self.law[rows, depths, tokens]
        weights = (self.weights[rows, at] * target / law).clamp(max=1)
        self.weights[rows, children] = torch.where(law > 0, weights, torch.zeros_like(law))
        self.is_visited[rows, children] = True
        self.at[rows] = children

    def _load(self, step: _Step, rows: Tensor) -> None:
        if len(rows):
            at = self.at[rows]
            depths = self.depths[rows, at]
            self.target[rows, depths] = step.target(rows, at)
            self.law[rows, depths] = step.draft.laws_at(rows, at)
            self.is_inner[rows, at] = True

    def leave(self, step: _Step, rows: Tensor) -> None:
        """All children were rejected: accept the node with its weight, or hand on to the parent what it has left."""
        if not len(rows):
            return
        weights = self.weights[rows, self.at[rows]]
        accept = step.random.of("accept").select(rows)
        accepted = accept.accepts(weights, torch.ones_like(weights), self.at[rows])
        self.is_done[rows] = accepted
        self._reject(step, rows[~accepted])

    def _reject(self, step: _Step, rows: Tensor) -> None:
        if not len(rows):
            return
        tokens, parents = self.tokens[rows, self.at[rows], None], self.parents[rows, self.at[rows]]
        depths, weights = self.depths[rows, parents], self.weights[rows, parents][:, None]
        target, law = self.target[rows, depths], self.law[rows, depths]
        residual, total = _residual(weights * target, law)
        vanished = ~(total > 0) & (weights >= 1)
        step.events.count("vanished_residuals", vanished)
        self.target[rows, depths] = torch.where(total > 0, residual, target)
        self.weights[rows, parents] = torch.where(vanished, weights, total / (total + 1 - weights)).squeeze(1)
        self.law[rows, depths], remaining = _law_without(step.draft.proposal, law, tokens)
        self.is_visited[rows] |= (self.parents[rows] == parents[:, None]) & ~remaining[:, None]
        self.at[rows] = parents

    def emit(self, step: _Step) -> Int[Tensor, " batch"]:
        rows = torch.arange(len(self.at), device=self.at.device)
        leaves = ~self.is_inner[rows, self.at]
        self._load(step, rows[leaves])
        return step.random.of("residual").choose(self.target[rows, self.depths[rows, self.at]], self.at)

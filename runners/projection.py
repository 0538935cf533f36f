"""Projected time: the loop runs here, but its seconds come from a cost model of another device.

Target and drafter are wrapped so that each call charges a ledger; a virtual clock reads it. Host work that the cost
model does not know of is free.
"""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algorithms.base import Drafter
from backend.costs import CostModel
from backend.targets import Target
from backend.timing import Stopwatch
from backend.tree import Accepted, TokenTree, Verified
from runners.decoding import Decoder


class Ledger:
    """Seconds that have passed on the other device, and how long each row's text is there."""

    def __init__(self, costs: CostModel) -> None:
        self.costs = costs
        self.seconds = 0.0
        self.lengths = torch.zeros(1, dtype=torch.int64)
        self.drafted = 0  # nodes per row that the drafter has expanded in this step
        self.verified = 0  # nodes per row that the target has scored in this step

    @property
    def context(self) -> int:
        return int(self.lengths.double().mean())

    def prefill(self, lengths: Tensor) -> None:
        self.lengths = lengths.cpu()
        self.drafted = self.verified = 0

    def verify(self, batch: int, width: int, context: int | None = None) -> None:
        self.seconds += float(self.costs.verify_seconds(batch, width, self.context if context is None else context))
        self.verified = width

    def draft(self, drafter: str, batch: int, width: int, context: int | None = None) -> None:
        context = self.context + self.drafted if context is None else context
        self.seconds += float(self.costs.draft_seconds(drafter, batch, width, context))
        self.drafted += width

    def commit(self, drafter: str | None, accepted: Accepted) -> None:
        self.seconds += float(self.costs.overhead_seconds(drafter, len(self.lengths), self.verified))
        self.lengths = self.lengths + accepted.num_nodes.cpu()
        self.drafted = 0


class VirtualClock(Stopwatch):
    """Reads the ledger instead of the time."""

    def __init__(self, ledger: Ledger, stages: bool = False) -> None:
        super().__init__(torch.device("cpu"), stages)
        self.ledger = ledger

    def now(self) -> float:
        return self.ledger.seconds


class ProjectedTarget:
    """A target whose forwards charge the ledger; its commit charges the rest of a step with this drafter."""

    def __init__(self, target: Target, ledger: Ledger, drafter: str | None) -> None:
        self.target = target
        self.ledger = ledger
        self.drafter = drafter
        self.device, self.vocab_size, self.max_context = target.device, target.vocab_size, target.max_context

    def allocate(self, batch: int, capacity: int) -> None:
        self.target.allocate(batch, capacity)

    def prefill(self, prompts: Int[Tensor, "batch prompt"], lengths: Int[Tensor, " batch"]) -> None:
        self.target.prefill(prompts, lengths)
        self.ledger.prefill(lengths)
        if prompts.shape[1]:
            self.ledger.verify(*prompts.shape, context=0)

    def expand(self, tree: TokenTree, nodes: Int[Tensor, "batch new"]) -> Float[Tensor, "batch new vocab"]:
        self.ledger.verify(*nodes.shape)
        return self.target.expand(tree, nodes)

    def commit(self, tree: TokenTree, accepted: Accepted) -> None:
        self.target.commit(tree, accepted)
        self.ledger.commit(self.drafter, accepted)

    def score_text(self, tokens: Int[Tensor, "batch text"], last: int) -> Float[Tensor, "batch last vocab"]:
        """For reports, so it costs nothing."""
        return self.target.score_text(tokens, last)

    def settle(self) -> None:
        self.target.settle()


class ProjectedDrafter:
    """A drafter whose levels charge the ledger. Its commit is part of the step's overhead."""

    def __init__(self, drafter: Drafter, ledger: Ledger) -> None:
        self.drafter = drafter
        self.ledger = ledger
        self.name = drafter.name
        self.max_context = getattr(drafter, "max_context", None)

    def allocate(self, batch: int, capacity: int) -> None:
        self.drafter.allocate(batch, capacity)

    def prefill(self, prompts: Int[Tensor, "batch prompt"], lengths: Int[Tensor, " batch"]) -> None:
        self.drafter.prefill(prompts, lengths)
        if prompts.shape[1]:
            self.ledger.draft(self.name, *prompts.shape, context=0)
            self.ledger.drafted = 0

    def expand(self, tree: TokenTree, nodes: Int[Tensor, "batch frontier"]) -> Float[Tensor, "batch frontier vocab"]:
        self.ledger.draft(self.name, *nodes.shape)
        return self.drafter.expand(tree, nodes)

    def commit(self, tree: TokenTree, accepted: Accepted, verified: Verified) -> None:
        self.drafter.commit(tree, accepted, verified)


def projected(decoder: Decoder, ledger: Ledger) -> Decoder:
    """The same decoder on the ledger's time; its algorithm must have been built on the projected drafter."""
    drafter = decoder.drafter.name if decoder.drafter else None
    return replace(decoder, target=ProjectedTarget(decoder.target, ledger, drafter))

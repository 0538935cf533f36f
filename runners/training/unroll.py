"""The loss of an EAGLE head: it learns on its own outputs, several simulated steps deep (EAGLE-3, section 3.2)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from backend.heads import EagleHead, Rows
from runners.training.distillation import distillation
from runners.training.features import Batch

FIRST = 2  # row i pairs the feature at i with token i + 1 and so proposes token i + 2


class StepResult(NamedTuple):
    """Of one simulated step: mean loss over real rows, and where the head's first choice is the target's."""

    loss: Tensor
    agrees: Bool[Tensor, "batch row"]
    real: Bool[Tensor, "batch row"]


class UnrolledAttention:
    """Step 0 is causal. In step s, row i stands for the s-th token drafted after row i: it sees the true rows up to i
    and what its own chain has computed since, and nothing else.
    """

    def __init__(self, rows: Int[Tensor, " chosen"]) -> None:
        self.rows = rows
        self.true_rows: tuple[Tensor, Tensor] | None = None
        self.chain: list[tuple[Tensor, Tensor]] = []

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.true_rows is None:
            self.true_rows = key, value
            return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        self.chain.append((key, value))
        keys, values = (torch.cat(parts, 2) for parts in zip(self.true_rows, *self.chain, strict=True))
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=self._visible(), enable_gqa=True)

    def _visible(self) -> Bool[Tensor, "chosen key"]:
        assert self.true_rows is not None
        before = torch.arange(self.true_rows[0].shape[2]) <= self.rows[:, None]
        own = torch.eye(len(self.rows), dtype=torch.bool)
        return torch.cat([before, *[own] * len(self.chain)], 1)


def unroll(
    head: EagleHead,
    embeddings: torch.nn.Module,
    teacher: Float[Tensor, "draft hidden"],
    batch: Batch,
    chosen: Sequence[Int[Tensor, " _"]],
    regression: float,
) -> list[StepResult]:
    """One result per simulated step; `chosen[s]` are the rows that step s looks at, each a part of those before.

    `teacher` is the target's LM head at the draftable tokens; the loss is the cross-entropy against the target's law
    over them, plus `regression` times the smooth L1 distance of states (EAGLE-1's loss; 0 for EAGLE-3).
    """
    results = []
    states, rows = head.fuse(batch.features), torch.arange(batch.tokens.shape[1])
    attend = UnrolledAttention(rows)
    for step, wanted in enumerate(chosen):
        kept = torch.searchsorted(rows, wanted)
        if step:
            attend.chain = [(key[:, :, kept], value[:, :, kept]) for key, value in attend.chain]
        rows = attend.rows = wanted
        tokens = batch.tokens[:, rows + step + 1]
        read = Rows(embeddings(tokens), states[:, kept], (rows + step).expand(tokens.shape))
        states = head(read, attend)
        results.append(_compare(head, states, teacher, batch, rows + step + FIRST - 1, regression))
    return results


def _compare(head: EagleHead, states: Tensor, teacher: Tensor, batch: Batch, at: Tensor, regression: float):
    """Against what the target says at the positions `at`."""
    final = batch.final[:, at]
    real = (at < batch.lengths[:, None]) & (at > 1)  # nothing is learned from the state of the first token
    crossed, agrees = distillation(head.logits(states[real][None])[0], F.linear(final[real], teacher))
    if regression:
        distance = F.smooth_l1_loss(states[real].float(), final[real].float(), reduction="none").mean(1)
        crossed = 0.1 * crossed + regression * distance
    loss = crossed.sum() / real.sum().clamp(min=1)
    return StepResult(loss, torch.zeros_like(real).masked_scatter(real, agrees), real)


def chosen_rows(length: int, steps: int, fraction: float, generator: torch.Generator) -> list[Int[Tensor, " _"]]:
    """All rows in the first step, a random `fraction` of them in the later ones."""
    everything = torch.arange(length - 1)
    later = torch.arange(max(1, length - steps))
    part = later[torch.randperm(len(later), generator=generator)[: max(1, round(fraction * len(later)))]].sort().values
    return [everything] + [part] * (steps - 1)

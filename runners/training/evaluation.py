"""Held-out agreement of a drafter with its target, and the acceptance length that it would give a chain."""

from collections.abc import Mapping
from itertools import accumulate
from operator import mul
from typing import Any

import torch

from runners.training.features import Batch
from runners.training.learners import Learner


@torch.no_grad()
def evaluate(learner: Learner, held_out: list[Batch], dtype: str) -> dict[str, Any]:
    """Agreement per simulated step given that all before agreed, and tokens per step of a greedy chain, bonus included.

    Teacher-forced on the text: what is drafted after an agreeing step is the text's own token.
    """
    reached: list[float] = []
    agreed: list[float] = []
    for batch in held_out:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            results = learner.steps(batch, torch.Generator().manual_seed(0), whole=True)
        alive = results[0].real
        for step, result in enumerate(results):
            if step == len(reached):
                reached.append(0.0)
                agreed.append(0.0)
            alive = alive & result.real
            reached[step] += float(alive.sum())
            alive = alive & result.agrees
            agreed[step] += float(alive.sum())
    rates = [a / max(1.0, r) for a, r in zip(agreed, reached, strict=True)]
    return {"acceptance": rates, "chain": 1.0 + sum(accumulate(rates, mul))}


def summary(line: Mapping[str, Any]) -> str:
    held_out = line.get("held_out")
    seen = f"{line['tokens'] / 1e6:.2f}M tokens, loss {line['loss']:.3f}, top-1 {line['top1'][0]:.0%}"
    return seen + (f", held-out chain {held_out['chain']:.2f}" if held_out else "")

"""The losslessness report of a run: are the method's tokens the target's own?

In fp32 a greedy answer must equal plain decoding token by token. In half precision it need not, because widths round
differently, so every emitted token is re-scored in one causal pass over the finished text; a chain with the same
drafter is the control. Sampled answers are checked by their mean surprisal, which must equal the target's entropy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import sqrt
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.growth import WHOLE_LAW
from algorithms.registry import create
from backend.acceptance import create_rule, default_rule
from backend.timing import Stopwatch
from backend.tree import Proposal
from runners.decoding import Decoder, Request, generate
from runners.measure import Pair
from runners.point import Point

CONTROL_DEPTH = 4
NEAR_TIE_LOGITS = 0.5  # four steps of bf16 at 16 to 32, where the largest logits lie


def losslessness(point: Point, pairs: Sequence[Pair], config: Mapping[str, Any]) -> dict[str, Any]:
    """Figures for the record; `report` sections are keyed by whose tokens were re-scored."""
    texts = [(request, index, row) for index, pair in enumerate(pairs) for row, request in enumerate(pair.requests)]
    answers = {
        "baseline": [pairs[i].baseline[0].tokens[row] for _, i, row in texts],
        "method": [pairs[i].method[0].tokens[row] for _, i, row in texts],
    }
    controls = texts[: config["control_prompts"]]
    if point.method.drafter is not None:
        answers["control"] = [_control(point, request) for request, _, _ in controls]
    check = _gaps if config["temperature"] == 0 else _surprisal
    report: dict[str, Any] = {
        arm: check(point, [request for request, _, _ in texts], tokens)
        for arm, tokens in answers.items()
        if any(tokens)
    }
    report["control_is"] = f"chain of {CONTROL_DEPTH} with the same drafter, first {len(controls)} prompts"
    report["numeric_events"] = point.method.rule.events.read()
    return report


def _control(point: Point, request: Request) -> list[int]:
    options = {"depth": CONTROL_DEPTH, "children": "top_k", **WHOLE_LAW}
    chain = create("chain", point.method.drafter, options)
    rule = create_rule(default_rule(Proposal.DETERMINISTIC, point.method.sampler.temperature))
    decoder: Decoder = replace(point.method, algorithm=chain, rule=rule)
    return generate(decoder, [request], point.limits, Stopwatch(decoder.target.device)).tokens[0]


@torch.inference_mode()
def rescore(point: Point, request: Request, answer: list[int]) -> Float[Tensor, "answer vocab"]:
    """The target's logits for every answer token, from one causal pass over prompt and answer."""
    text = torch.tensor([request.prompt + answer[:-1]], device=point.method.target.device)
    return point.method.target.score_text(text, last=len(answer))[0].float()


def _gaps(point: Point, requests: Sequence[Request], answers: Sequence[list[int]]) -> dict[str, Any]:
    """How far below the largest logit the emitted tokens lie; 0 where they are the argmax."""
    gaps = torch.cat([_gap(rescore(point, r, a), a) for r, a in zip(requests, answers, strict=False) if a])
    return {
        "tokens": len(gaps),
        "argmax_rate": float((gaps == 0).double().mean()),
        "largest_gap": float(gaps.max()),
        "beyond_near_tie": int((gaps > NEAR_TIE_LOGITS).sum()),
        "near_tie_logits": NEAR_TIE_LOGITS,
    }


def _gap(logits: Float[Tensor, "answer vocab"], answer: list[int]) -> Float[Tensor, " answer"]:
    emitted = logits.gather(1, torch.tensor(answer, device=logits.device)[:, None])[:, 0]
    return (logits.max(1).values - emitted).cpu()


def _surprisal(point: Point, requests: Sequence[Request], answers: Sequence[list[int]]) -> dict[str, Any]:
    """z of the emitted tokens' summed surprisal against the target's entropy; |z| beyond 4 is not chance.

    Tokens that the re-scored law gives no mass (top-k and top-p cut at a rounding's width) are counted apart.
    """
    total, variance, count, outside = 0.0, 0.0, 0, 0
    for request, answer in zip(requests, answers, strict=False):
        if answer:
            probs = point.method.sampler.probs(rescore(point, request, answer)).double()
            information = -probs.log().masked_fill(probs == 0, 0.0)
            entropy = (probs * information).sum(1)
            chosen = torch.tensor(answer, device=probs.device)[:, None]
            possible = probs.gather(1, chosen)[:, 0] > 0
            excess = information.gather(1, chosen)[:, 0] - entropy
            total += float(excess[possible].sum())
            variance += float(((probs * information**2).sum(1) - entropy**2)[possible].sum())
            count += len(answer)
            outside += int((~possible).sum())
    z = total / sqrt(variance) if variance > 0 else 0.0
    return {"tokens": count, "mean_excess_surprisal": total / count, "z": z, "outside_support": outside}

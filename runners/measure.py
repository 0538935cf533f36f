"""Measures one point: baseline and method in alternating random order, then once more with stage clocks."""

import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from backend.drafters.registry import clocked_models
from backend.errors import TreebenchError
from runners.decoding import Generation, Limits, Request, generate
from runners.point import Point, stop_stage_clock, with_stage_clock
from runners.prompts import Question, render

WARMUP_TOKENS = 8


@dataclass
class Pair:
    """One batch of prompts decoded `repeats` times by both arms."""

    prompts: list[tuple[Question, int]]  # question and turn
    requests: list[Request]
    baseline: list[Generation] = field(default_factory=list)
    method: list[Generation] = field(default_factory=list)
    traced: Generation | None = None  # of the method in the pass with stage clocks, with its steps


def measure(
    point: Point, questions: Sequence[Question], config: Mapping[str, Any], advance: Callable[[], None]
) -> list[Pair]:
    """Time all turns of all questions. Later turns go on from the baseline's first answer, for both arms."""
    order = random.Random(config["seed"])
    answers: dict[str, list[str]] = {question.id: [] for question in questions}
    pairs = []
    for turn in range(max(len(question.turns) for question in questions)):
        of_turn = list(_pairs(point, questions, turn, answers, config))
        check_context(point, of_turn)
        for pair in of_turn:
            if not pairs:
                warm_up(point, pair.requests)
            for _ in range(config["repeats"]):
                _decode_both(point, pair, order)
            for (question, _), tokens in zip(pair.prompts, pair.baseline[0].tokens, strict=True):
                answers[question.id].append(str(point.loaded.tokenizer.decode(tokens, skip_special_tokens=True)))
            pairs.append(pair)
            advance()
    return pairs


def num_pairs(questions: Sequence[Question], batch_size: int) -> int:
    turns = range(max(len(question.turns) for question in questions))
    return sum(-(-sum(len(q.turns) > turn for q in questions) // batch_size) for turn in turns)


def _pairs(
    point: Point, questions: Sequence[Question], turn: int, answers: dict[str, list[str]], config: Mapping[str, Any]
) -> Iterator[Pair]:
    style = {"system": config["task"].get("system"), "chat": config["task"].get("chat", True)}
    batch_size = config["batch_size"]
    asked = [question for question in questions if len(question.turns) > turn]
    for first in range(0, len(asked), batch_size):
        batch = asked[first : first + batch_size]
        yield Pair(
            prompts=[(question, turn) for question in batch],
            requests=[
                Request(
                    sequence=zlib.crc32(f"{question.id}/{turn}".encode()),
                    prompt=render(point.loaded.tokenizer, question.turns, answers[question.id], **style),
                )
                for question in batch
            ],
        )


def check_context(point: Point, pairs: Sequence[Pair]) -> None:
    """Refuse a prompt that leaves too little of the context of target or drafter, before any time is spent."""
    longest, question = max(
        (len(r.prompt), q.id) for p in pairs for r, (q, _) in zip(p.requests, p.prompts, strict=True)
    )
    needed = longest - 1 + point.limits.max_new_tokens + point.limits.tree_slots
    models = (point.method.target, point.method.drafter, *clocked_models(point.method.drafter))
    limits = [getattr(model, "max_context", None) for model in models]
    context = min(limit for limit in limits if limit is not None)
    if needed > context:
        raise TreebenchError(
            f"the prompt of question {question} has {longest} tokens; with max_new_tokens "
            f"{point.limits.max_new_tokens} and backend.tree_slots {point.limits.tree_slots} that is more than the "
            f"{context} that the model's context holds: shorten the prompt, or lower one of the two"
        )


def warm_up(point: Point, requests: Sequence[Request]) -> None:
    """A few untimed tokens of both arms: caches are allocated, kernels chosen, threads started.

    The very first step, after a few tokens of the prompts, has room for `tree_slots` and no more, so that a tree that
    is too wide fails here, not in the last step of some long answer.
    """
    tokens = min(WARMUP_TOKENS, point.limits.max_new_tokens)
    rest = point.limits.max_new_tokens - tokens
    ends = [replace(request, prompt=request.prompt[-WARMUP_TOKENS:]) for request in requests]
    for decoder in (point.baseline, point.method):
        generate(decoder, ends, Limits(1, (), point.limits.tree_slots), point.clock())
        generate(decoder, requests, Limits(tokens, (), rest + point.limits.tree_slots), point.clock())


def _decode_both(point: Point, pair: Pair, order: random.Random) -> None:
    arms = [(point.baseline, pair.baseline), (point.method, pair.method)]
    order.shuffle(arms)
    for decoder, generations in arms:
        generations.append(generate(decoder, pair.requests, point.limits, point.clock()))


def measure_stages(point: Point, pairs: Sequence[Pair], config: Mapping[str, Any]) -> dict[str, float]:
    """Seconds per stage of the method over the first prompts, from a pass of its own: these clocks cost time.

    `forward` is what models spent inside draft and verify; `other` is the loop itself. The pass leaves the trees of its
    first `tree_prompts` prompts behind.
    """
    clock = point.clock(stages=True)
    decoder = with_stage_clock(config, point, clock)
    total = 0.0
    for index, pair in enumerate(pairs[: -(-config["stage_prompts"] // config["batch_size"])]):
        keep = index * config["batch_size"] < config["tree_prompts"]
        generation = generate(decoder, pair.requests, point.limits, clock, keep)
        total += generation.seconds
        pair.traced = generation if keep else None
    stop_stage_clock(point.method)
    seconds = clock.stage_seconds
    draft = seconds["draft"]
    known = {"draft": draft, "tree": seconds["grow"] - draft} | {s: seconds[s] for s in ("verify", "accept", "commit")}
    return known | {"other": total - sum(known.values()), "forward": seconds["forward"], "total": total}

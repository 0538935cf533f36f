"""The default model on real prompts: every algorithm gives the target's greedy text in fp32.

With the drafter that its config chooses; only layer skipping, which takes most of a forward, is left to the algorithms
that are about it, and the trained head drafts for the others.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from algorithms.registry import ALGORITHMS, needs_costs
from backend.loading import load_target
from backend.targets import build_target
from backend.timing import Stopwatch
from runners.decoding import Request, generate
from runners.point import Point, build
from runners.prompts import load_questions, render

CONF = str(Path(__file__).parent.parent / "conf")
BATCH, MOST = 4, 20
pytestmark = [pytest.mark.lossless, pytest.mark.xdist_group("real model")]
SELF_DRAFTING = ("swift", "swift_chain")
DRAFTING = [name for name in ALGORITHMS.all() if name != "autoregressive"]


def config_of(algorithm: str) -> dict[str, Any]:
    with initialize_config_dir(CONF, version_base="1.3"):
        elsewhere = ["device=h100"] if needs_costs(algorithm) else []  # whose costs need no measurement
        cfg = compose("benchmark", [f"algorithm={algorithm}", *elsewhere])
        if cfg.drafter.kind == "layer_skip" and not elsewhere and algorithm not in SELF_DRAFTING:
            cfg = compose("benchmark", [f"algorithm={algorithm}", "drafter=eagle3_smollm2", *elsewhere])
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


@cache
def target_of(*config: str) -> Any:
    return build_target(config_of("autoregressive")["target"], *config)


@cache
def point_of(algorithm: str) -> Point:
    """All on one target, as loading it takes longer than a few tokens."""
    with patch("runners.point.build_target", lambda target, *config: target_of(*config)):
        return build(config_of(algorithm))


@cache
def requests(num_prompts: int) -> tuple[Request, ...]:
    """The shortest of twenty: reading a prompt takes most of the time of a few tokens."""
    tokenizer = point_of("autoregressive").loaded.tokenizer
    tasks: list[Any] = [OmegaConf.to_container(OmegaConf.load(f"{CONF}/task/{t}.yaml")) for t in ("humaneval", "chat")]
    prompts = [
        [render(tokenizer, question.turns, []) for question in load_questions(task, MOST // 2, 0)] for task in tasks
    ]
    shortest = [prompt for some in prompts for prompt in sorted(some, key=len)[: num_prompts // 2]]
    return tuple(Request(i, prompt) for i, prompt in enumerate(shortest))


def decode(point: Point, batch: tuple[Request, ...], new_tokens: int) -> list[list[int]]:
    limits = replace(point.limits, max_new_tokens=new_tokens)
    return generate(point.method, batch, limits, Stopwatch(torch.device("cpu"))).tokens


@cache
def plain_answers(num_prompts: int, new_tokens: int) -> tuple[list[int], ...]:
    """Plain decoding, one prompt at a time; each token is the argmax of one untouched pass over the whole text."""
    point, untouched = point_of("autoregressive"), load_target(config_of("autoregressive")["target"]).model
    answers = []
    for request in requests(num_prompts):
        answer = decode(point, (request,), new_tokens)[0]
        text = torch.tensor([request.prompt + answer[:-1]])
        with torch.inference_mode():
            logits = untouched(text).logits[0, -len(answer) :]
        assert logits.argmax(1).tolist() == answer
        answers.append(answer)
    return tuple(answers)


def check(algorithm: str, num_prompts: int, new_tokens: int) -> None:
    expected = plain_answers(num_prompts, new_tokens)
    for first in range(0, num_prompts, BATCH):
        batch = requests(num_prompts)[first : first + BATCH]
        assert decode(point_of(algorithm), batch, new_tokens) == list(expected[first : first + BATCH])


@pytest.mark.parametrize("algorithm", DRAFTING)
def test_four_real_prompts(algorithm):
    check(algorithm, num_prompts=4, new_tokens=8)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", DRAFTING)
def test_twenty_real_prompts(algorithm):
    check(algorithm, num_prompts=MOST, new_tokens=128)

"""The report on losslessness tells right decoding from wrong, at every temperature and precision."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from backend.acceptance import create_rule, default_rule
from backend.loading import LoadedModel
from backend.model import TreeModel
from backend.sampling import Sampler
from backend.timing import Stopwatch
from backend.tree import Proposal
from runners.decoding import Decoder, Generation, Limits, Request, generate
from runners.losslessness import losslessness
from runners.measure import Pair
from runners.point import Point
from runners.summary import first_divergence
from tests.parts import make_algorithm, make_drafter, prompts
from tests.tiny_models import VOCAB, tiny_llama

pytestmark = pytest.mark.lossless
REQUESTS = [Request(i, prompt) for i, prompt in enumerate(prompts([5, 9, 3, 7]))]
NAME, VARIANT = "fixed_tree", {"children": "without_replacement"}


def point_of(temperature: float, dtype: torch.dtype = torch.float32, tokens: int = 32) -> Point:
    model: Any = tiny_llama()
    target = TreeModel(model.to(dtype))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    drafter = make_drafter("small_model", target)
    method, plain = make_algorithm(NAME, VARIANT, drafter), make_algorithm("autoregressive", {}, None)
    sampler = Sampler(temperature)
    rule = create_rule(default_rule(method.proposal, temperature))
    plain_rule = create_rule(default_rule(Proposal.DETERMINISTIC, temperature))
    return Point(
        LoadedModel(target.model, tokenizer, "tiny", "random weights", ()),
        baseline=Decoder(target, plain, None, plain_rule, sampler, 0),
        method=Decoder(target, method, drafter, rule, sampler, 0),
        limits=Limits(tokens, (), 64),
    )


def decode(point: Point, decoder: Decoder) -> Generation:
    return generate(decoder, REQUESTS, point.limits, Stopwatch(torch.device("cpu")))


def report_on(point: Point, method: Generation) -> dict[str, Any]:
    pair = Pair([], REQUESTS, [decode(point, point.baseline)], [method])
    return losslessness(point, [pair], {"temperature": point.method.sampler.temperature, "control_prompts": 1})


def identical(report: Point, method: Generation) -> list[bool]:
    expected = decode(report, report.baseline).tokens
    return [first_divergence(a, b) is None for a, b in zip(method.tokens, expected, strict=True)]


def test_greedy_fp32_is_the_target_s_own():
    point = point_of(0.0)
    answers = decode(point, point.method)
    report = report_on(point, answers)
    assert all(identical(point, answers))
    for arm in ("baseline", "method", "control"):
        assert report[arm]["argmax_rate"] == 1.0
        assert report[arm]["largest_gap"] == 0.0
        assert report[arm]["beyond_near_tie"] == 0
    assert report["method"]["tokens"] == len(REQUESTS) * point.limits.max_new_tokens
    assert report["control"]["tokens"] == point.limits.max_new_tokens
    assert report["numeric_events"] == {"invalid_rows": 0, "vanished_residuals": 0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_wrong_token_shows(dtype):
    point = point_of(0.0, dtype)
    answers = decode(point, point.method)
    row, last = answers.tokens[1], len(answers.tokens[1]) - 1
    row[last] = (row[last] + 1) % VOCAB
    report = report_on(point, answers)["method"]
    assert identical(point, answers)[1] is False
    assert report["argmax_rate"] < 1.0
    assert report["largest_gap"] > report["near_tie_logits"]
    assert report["beyond_near_tie"] == 1


def test_half_precision_is_judged_by_near_ties_and_a_control():
    point = point_of(0.0, torch.bfloat16)
    report = report_on(point, decode(point, point.method))
    for arm in ("baseline", "method", "control"):
        assert report[arm]["argmax_rate"] > 0.9
        assert report[arm]["largest_gap"] <= report[arm]["near_tie_logits"]
        assert report[arm]["beyond_near_tie"] == 0
    assert "chain of 4" in report["control_is"]


def test_sampled_surprisal_is_the_entropy():
    point = point_of(0.8, tokens=48)
    report = report_on(point, decode(point, point.method))
    for arm in ("baseline", "method", "control"):
        assert abs(report[arm]["z"]) < 4
    assert report["method"]["tokens"] == 48 * len(REQUESTS)


@pytest.mark.slow
@pytest.mark.parametrize(("temperature", "sign"), [(1.2, 1), (0.5, -1)])
def test_another_temperature_shows(temperature, sign):
    point = point_of(0.8, tokens=128)
    biased = decode(point, replace(point.method, sampler=Sampler(temperature)))
    assert report_on(point, biased)["method"]["z"] * sign > 6

"""What is measured in which order, and how it becomes a record and a table of steps."""

import re
from dataclasses import replace
from random import Random
from typing import Any

import numpy
import pytest
import torch

from algorithms.growth import WHOLE_LAW
from backend.acceptance import create_rule
from backend.loading import LoadedModel
from backend.timing import Stopwatch
from runners import measure as measuring
from runners.decoding import Generation, Limits, Request, generate
from runners.measure import Pair, measure, num_pairs
from runners.point import Point
from runners.prompts import Question
from runners.records import STEP_COLUMNS
from runners.summary import first_divergence, git_commit, steps_table
from tests.parts import make_decoder, prompts
from tests.test_loading import tiny_tokenizer

QUESTIONS = [Question(str(i), "tiny", ["hello", "lo"]) for i in range(4)]
CONFIG: dict[str, Any] = {"seed": 3, "repeats": 4, "batch_size": 1, "stage_prompts": 2, "task": {"system": None}}
CONFIG["tree_prompts"] = 1


def make_point() -> Point:
    method: Any = make_decoder("chain", {"children": "top_k"}, "prompt_lookup")
    plain: Any = make_decoder("autoregressive", {}, "prompt_lookup").algorithm
    baseline = replace(method, algorithm=plain, drafter=None, rule=create_rule("greedy"))
    loaded = LoadedModel(method.target.model, tiny_tokenizer(), "tiny", "", ())
    return Point(loaded, baseline=baseline, method=method, limits=Limits(6, (), 64))


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, list[int]]]:
    """Instead of decoding: note arm and prompt; baseline and method give different answers."""
    noted: list[tuple[str, list[int]]] = []
    answers = {"baseline": tiny_tokenizer().encode("abc"), "method": tiny_tokenizer().encode("xyz")}

    def fake(decoder, requests, limits, clock):
        arm = "baseline" if decoder.drafter is None else "method"
        if limits.max_new_tokens == 6 and limits.tree_slots == 64:
            noted.append((arm, requests[0].prompt))
        return Generation([list(answers[arm]) for _ in requests], seconds=1.0)

    monkeypatch.setattr(measuring, "generate", fake)
    monkeypatch.setattr(measuring, "warm_up", lambda *_: None)
    return noted


@pytest.mark.parametrize(
    ("tokens", "expected", "index"),
    [
        ([1, 2], [1, 2], None),
        ([1, 3], [1, 2], 1),
        ([1], [1, 2], 1),
        ([1, 2, 3], [1, 2], 2),
        ([], [], None),
        ([], [1], 0),
    ],
)
def test_first_divergence(tokens, expected, index):
    assert first_divergence(tokens, expected) == index


def test_order_is_random_and_interleaved(calls):
    pairs = measure(make_point(), QUESTIONS, CONFIG, lambda: None)
    arms = [arm for arm, _ in calls]
    assert len(arms) == 2 * 2 * 4 * 4, "arms x turns x questions x repeats"
    firsts = arms[::2]
    assert all({arms[i], arms[i + 1]} == {"baseline", "method"} for i in range(0, len(arms), 2))
    assert 0.2 < firsts.count("baseline") / len(firsts) < 0.8
    assert firsts != sorted(firsts)
    assert [len(pair.baseline) for pair in pairs] == [len(pair.method) for pair in pairs] == [4] * 8


def test_order_follows_the_seed(calls):
    measure(make_point(), QUESTIONS, CONFIG, lambda: None)
    first = [arm for arm, _ in calls]
    calls.clear()
    measure(make_point(), QUESTIONS, CONFIG, lambda: None)
    assert [arm for arm, _ in calls] == first
    calls.clear()
    measure(make_point(), QUESTIONS, CONFIG | {"seed": 4}, lambda: None)
    assert [arm for arm, _ in calls] != first


def test_second_turn_goes_on_from_the_baselines_answer(calls):
    measure(make_point(), QUESTIONS[:1], CONFIG, lambda: None)
    later = calls[8:]
    assert {arm for arm, _ in later} == {"baseline", "method"}
    assert len({tuple(prompt) for _, prompt in later}) == 1, "both arms get the same prompt"
    text = tiny_tokenizer().decode(later[0][1])
    assert "<|im_start|> a Ġ b Ġ c <|im_end|> <|im_start|> lo <|im_end|>" in text, "this tokenizer decodes with blanks"
    assert "x" not in text


def test_progress_counts_pairs(calls):
    steps: list[int] = []
    questions = [*QUESTIONS, Question("one", "tiny", ["hello"])]
    measure(make_point(), questions, CONFIG | {"batch_size": 3}, lambda: steps.append(1))
    assert len(steps) == num_pairs(questions, 3) == 4


def measured_pair() -> tuple[Any, Pair]:
    point = make_point()
    requests = [Request(i, prompt) for i, prompt in enumerate(prompts([9, 14]))]
    pair = Pair([(question, 0) for question in QUESTIONS[:2]], requests)
    measuring._decode_both(point, pair, Random(0))
    return point, pair


def test_steps_table_adds_up():
    _, pair = measured_pair()
    table = steps_table([pair, pair])
    assert {name: str(kind) for name, kind in table.dtypes.items()} == STEP_COLUMNS
    assert table["sequence"].unique().tolist() == [0, 1, 2, 3]
    for sequence, rows in table.groupby("sequence"):
        row = int(str(sequence)) % 2
        assert rows["step"].tolist() == list(range(len(rows)))
        assert int(numpy.sum(rows["emitted"])) == len(pair.method[0].tokens[row]) == 6
        before = len(pair.requests[row].prompt) + rows["emitted"].cumsum() - rows["emitted"]
        assert rows["context"].tolist() == before.tolist()
        assert numpy.all(rows["depth"] == rows["verified_nodes"] - 1), "a chain"


def test_stages_sum_to_the_total():
    point, pair = measured_pair()
    config = CONFIG | {"algorithm": {"name": "chain", "depth": 4, "children": "top_k", **WHOLE_LAW}}
    stages = measuring.measure_stages(point, [pair], config)
    total, forward = stages.pop("total"), stages.pop("forward")
    assert sum(stages.values()) == pytest.approx(total)
    assert all(seconds >= 0 for seconds in stages.values())
    assert 0 < forward <= stages["verify"] + stages["draft"]
    assert not point.method.target.clock.stages, "the clock is off again"


def test_forwards_of_the_prefill_are_not_counted():
    point, pair = measured_pair()
    target = point.method.target
    target.clock = Stopwatch(torch.device("cpu"), stages=True)
    generate(point.baseline, pair.requests, Limits(1, (), 64), target.clock)
    seconds = target.clock.stage_seconds
    assert 0 < seconds["forward"] <= seconds["verify"]
    assert seconds["prefill"] > 0


def test_git_commit(monkeypatch):
    assert re.fullmatch(r"([0-9a-f]{40}\+?)?", git_commit())
    monkeypatch.setenv("PATH", "")
    assert git_commit() == ""

"""A sampled text depends on its seed and its own request: not on what is decoded with it, nor in which order."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from backend.acceptance import RULES, create_rule
from backend.random import RandomStream
from backend.timing import Stopwatch
from backend.tree import Proposal
from runners.decoding import Decoder, Limits, Request, generate
from tests.parts import CASE_IDS, CASES, make_decoder, prompts

CPU = torch.device("cpu")
LIMITS = Limits(max_new_tokens=6, eos_token_ids=(), tree_slots=64)
REQUESTS = [Request(sequence, prompt) for sequence, prompt in zip((5, 17, 2), prompts([7, 1, 12]), strict=True)]
ORDERS = [(0, 1, 2), (2, 0)]
by_case = pytest.mark.parametrize(("name", "variant"), CASES, ids=CASE_IDS)


def texts(decoder: Decoder, requests: list[Request]) -> list[list[int]]:
    return generate(decoder, requests, LIMITS, Stopwatch(CPU)).tokens


def rules_for(proposal: Proposal) -> list[str]:
    rules = [RULES[name](name=name) for name in RULES]
    return [rule.name for rule in rules if rule.lossless and not rule.greedy_only and proposal in rule.proposals]


@pytest.mark.parametrize("kind", ["small_model", "prompt_lookup"])
@by_case
def test_alone_in_a_batch_and_in_any_order(name, variant, kind):
    decoder = make_decoder(name, variant, kind, temperature=0.9)
    for rule in rules_for(decoder.algorithm.proposal):
        decoder = replace(decoder, rule=create_rule(rule))
        alone = [texts(decoder, [request])[0] for request in REQUESTS]
        for order in ORDERS:
            assert texts(decoder, [REQUESTS[i] for i in order]) == [alone[i] for i in order]


@by_case
def test_another_seed_or_sequence_gives_another_text(name, variant):
    decoder = make_decoder(name, variant, "small_model", temperature=0.9)
    prompt = REQUESTS[0].prompt
    found = [texts(replace(decoder, seed=seed), [Request(s, prompt)])[0] for seed in range(3) for s in (0, 1)]
    assert len({tuple(text) for text in found}) == len(found)
    assert texts(replace(decoder, seed=2), [Request(1, prompt)])[0] == found[-1]


@by_case
def test_no_two_steps_or_rows_share_a_stream(name, variant, monkeypatch):
    decoder = make_decoder(name, variant, "small_model", temperature=0.9)
    steps: list[dict[str, list[int]]] = []
    keyed, of = RandomStream.keyed, RandomStream.of

    def noting_keyed(*arguments: Any) -> RandomStream:
        steps.append({})
        return keyed(*arguments)

    def noting_of(stream: RandomStream, purpose: str) -> RandomStream:
        made = of(stream, purpose)
        steps[-1][purpose] = made.keys.tolist()
        return made

    monkeypatch.setattr(RandomStream, "keyed", noting_keyed)
    monkeypatch.setattr(RandomStream, "of", noting_of)
    result = generate(decoder, REQUESTS, LIMITS, Stopwatch(CPU))
    assert len(steps) == len(result.emitted) > 1
    used = [
        key
        for streams, emitted in zip(steps, result.emitted, strict=True)
        for keys in streams.values()
        for key, count in zip(keys, emitted, strict=False)
        if count and len(keys) == len(emitted)
    ]
    assert len(used) >= len(steps)
    assert len(set(used)) == len(used)

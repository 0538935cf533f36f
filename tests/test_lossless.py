"""Whatever the tree, greedy output is the target's own, token by token."""

import pytest
import torch

from backend.timing import Stopwatch
from runners.decoding import Generation, Limits, Request, generate
from tests.parts import CASE_IDS, CASES, DRAFTERS, LIMITS, make_decoder, prompts
from tests.tiny_models import tiny_llama

pytestmark = pytest.mark.lossless
CPU = torch.device("cpu")


def plain_greedy(prompt: list[int], limits: Limits) -> list[int]:
    """Full forwards of the untouched model, no cache, no tree."""
    model, tokens = tiny_llama(), list(prompt)
    with torch.inference_mode():
        while len(tokens) - len(prompt) < limits.max_new_tokens and not (
            len(tokens) > len(prompt) and tokens[-1] in limits.eos_token_ids
        ):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def decode(decoder, requests: list[list[int]], limits: Limits = LIMITS) -> Generation:
    return generate(decoder, [Request(i, p) for i, p in enumerate(requests)], limits, Stopwatch(CPU))


EXPECTED = {length: plain_greedy(prompts([length])[0], LIMITS) for length in (1, 7, 12)}


@pytest.mark.parametrize("kind", DRAFTERS)
@pytest.mark.parametrize(("name", "variant"), CASES, ids=CASE_IDS)
@pytest.mark.parametrize("lengths", [[7], [7, 1, 12]], ids=["batch1", "batch3"])
def test_greedy_output_equals_plain_decoding(name, variant, kind, lengths):
    requests = [prompts([length])[0] for length in lengths]
    result = decode(make_decoder(name, variant, kind), requests)
    assert result.tokens == [EXPECTED[length] for length in lengths]
    assert sum(map(sum, result.emitted)) == sum(map(len, result.tokens))


@pytest.mark.parametrize("kind", DRAFTERS)
@pytest.mark.parametrize(("name", "variant"), [case for case in CASES if case[0] != "autoregressive"])
def test_drafts_are_accepted(name, variant, kind):
    """The equality above would also hold for drafts that are never right."""
    result = decode(make_decoder(name, variant, kind), [prompts([7])[0]])
    assert len(result.emitted) < len(result.tokens[0])


@pytest.mark.parametrize("eos", [0, 1, 2, 3])
def test_text_ends_at_the_first_end_token_or_the_limit(eos):
    prompt = prompts([7])[0]
    free = plain_greedy(prompt, Limits(24, (), 64))
    limits = Limits(24, (free[eos],), 64)
    result = decode(make_decoder("fixed_tree", {}, "small_model"), [prompt], limits)
    assert result.tokens[0] == free[: free.index(free[eos]) + 1]

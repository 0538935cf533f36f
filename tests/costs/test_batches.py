"""Greedy text does not depend on the batch: every size gives plain decoding's own, prompt by prompt."""

import pytest
import torch

from backend.timing import Stopwatch
from runners.decoding import Limits, Request, generate
from tests.parts import make_decoder, prompts

pytestmark = pytest.mark.xdist_group("batches")  # one worker sets its fixtures up

REQUESTS = [Request(i, prompt) for i, prompt in enumerate(prompts([1 + (7 * i) % 23 for i in range(64)]))]
LIMITS = Limits(max_new_tokens=10, eos_token_ids=(3, 11), tree_slots=64)  # rows finish at different steps
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def plain() -> list[list[int]]:
    decoder = make_decoder("autoregressive", {}, "prompt_lookup")
    return [generate(decoder, [request], LIMITS, Stopwatch(CPU)).tokens[0] for request in REQUESTS]


@pytest.mark.lossless
@pytest.mark.parametrize("batch", [2, 8, 64, *(pytest.param(b, marks=pytest.mark.slow) for b in (1, 4, 16, 32))])
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("cast", "uniform"),
        ("cast", "pooled"),
        ("cast_rate", "uniform"),
        ("cast_rate", "own"),
        ("goodput_chain", "uniform"),
    ],
)
def test_any_batch_gives_the_text_of_plain_decoding(plain, name, rows, batch):
    decoder = make_decoder(name, {"rows": rows}, "small_model")
    result = generate(decoder, REQUESTS[:batch], LIMITS, Stopwatch(CPU))
    assert result.tokens == plain[:batch]
    assert len({len(tokens) for tokens in plain}) > 1
    assert len(result.emitted) < 10


def test_rows_of_a_batch_share_one_width_or_not():
    widths = {}
    for rows in ("uniform", "own"):
        decoder = make_decoder("cast", {"rows": rows, "thresholds": [0.5, 0.5, 1.5]}, "small_model")
        result = generate(decoder, REQUESTS[:8], LIMITS, Stopwatch(CPU))
        widths[rows] = [len(set(sizes.verified)) for sizes in result.trees]
    assert set(widths["uniform"]) == {1}
    assert max(widths["own"]) > 1

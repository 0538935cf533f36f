"""Decoding with kernels, forward to commit, gives what decoding with the reference operations gives."""

import copy
from dataclasses import replace
from typing import Any

import pytest

from backend.graphs import Graphs, capture_on_gpu
from backend.model import TreeModel
from backend.ops.triton_bitmask import layout_words
from runners.decoding import Decoder, Limits
from tests.kernels.cases import DEVICE, triton_ops
from tests.parts import CASE_IDS, CASES, make_decoder, prompts
from tests.test_lossless import decode, plain_greedy

pytestmark = [pytest.mark.kernels, pytest.mark.lossless]
LIMITS = Limits(max_new_tokens=4, eos_token_ids=(), tree_slots=64)
FAST = ("autoregressive", "fixed_tree-iid")
PARAMETERS = [
    pytest.param(*case, id=name, marks=() if name in FAST else pytest.mark.slow)
    for case, name in zip(CASES, CASE_IDS, strict=True)
]


def with_kernels(decoder: Decoder) -> Decoder:
    for model in (decoder.target, decoder.drafter):
        if isinstance(model, TreeModel):
            model.ops = triton_ops()
            model.model = copy.deepcopy(model.model).to(DEVICE)  # type: ignore[arg-type]
    return replace(decoder, rule=replace(decoder.rule, ops=triton_ops()))


@pytest.mark.parametrize(("name", "variant"), PARAMETERS)
def test_greedy_output_equals_plain_decoding(name, variant):
    decoder = with_kernels(make_decoder(name, variant, "small_model"))
    assert decode(decoder, prompts([7]), LIMITS).tokens == [plain_greedy(prompts([7])[0], LIMITS)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("dyspec", {"children": "without_replacement", "build": "threshold"}),
        ("chain", {"children": "iid"}),
        ("eagle2", {}),
    ],
)
def test_a_ragged_batch_samples_what_the_reference_samples(name, variant):
    """The same random numbers; laws differ by rounding, which no draw of this seed is close enough to notice."""
    expected = decode(make_decoder(name, variant, "small_model", temperature=0.8), prompts([7, 1]), LIMITS)
    found = decode(with_kernels(make_decoder(name, variant, "small_model", temperature=0.8)), prompts([7, 1]), LIMITS)
    assert found.tokens == expected.tokens
    assert found.emitted == expected.emitted


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type != "cuda", reason="set TREE_DEVICE=cuda")
@pytest.mark.parametrize(
    ("name", "variant"), [("eagle2", {}), ("chain", {"children": "top_k"}), ("autoregressive", {})]
)
def test_replayed_graphs_decode_what_eager_forwards_decode(name, variant):
    decoder: Any = with_kernels(make_decoder(name, variant, "small_model"))
    for model in (decoder.target, decoder.drafter):
        if isinstance(model, TreeModel):
            model.graphs = Graphs(layout_words, capture_on_gpu)
    assert decode(decoder, prompts([7]), LIMITS).tokens == [plain_greedy(prompts([7])[0], LIMITS)]
    assert decoder.target.graphs is not None
    assert decoder.target.graphs.captured

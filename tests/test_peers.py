"""The baseline that speedups divide by is not slow: measured against transformers in the same process."""

import pytest
import torch

from benchmarks.peers import compare, ratios


@pytest.mark.slow
def test_plain_decoding_and_prompt_lookup_keep_up_with_transformers():
    torch.set_num_threads(max(1, torch.get_num_threads()))
    found = ratios(compare("bfloat16", ["humaneval", "summarize"], num_prompts=3, new_tokens=64))
    assert found["plain"] >= 1.1
    assert found["prompt lookup"] >= 1.0

"""Drafters: prompt lookup's rules against a plain implementation, layer skipping on shared weights, refusals."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from algorithms.chain import Chain
from algorithms.growth import WHOLE_LAW
from backend.drafters.layer_skip import LayerSkip, without_layers
from backend.drafters.prompt_lookup import PromptLookup, find_ngram
from backend.drafters.registry import create_drafter
from backend.errors import TreebenchError
from backend.layers import layer_list_path
from backend.loading import LoadedModel
from backend.model import TreeModel
from backend.random import RandomStream
from backend.registry import Registry
from backend.tree import Accepted, TokenTree
from tests.entry_point import VOCABULARY, save_model
from tests.test_loading import tiny_tokenizer
from tests.tiny_models import VOCAB, tiny_llama

SIZES = range(3, 0, -1)


def lookup(prompt: list[int], continuation: int = 1) -> PromptLookup:
    drafter = PromptLookup(VOCAB, max_ngram=3, min_ngram=1, continuation=continuation)
    drafter.prefill(torch.tensor([prompt[:-1]]), torch.tensor([len(prompt) - 1]))
    return drafter


def chain_tokens(drafter: PromptLookup, root: int, depth: int) -> list[int]:
    chain: Any = Chain(drafter, depth=depth, children="top_k", **WHOLE_LAW)
    tree = TokenTree.root(torch.tensor([root]))
    random = RandomStream.keyed(0, torch.tensor([0]), torch.tensor([0]))
    draft = chain.grow(tree, random)
    return draft.tree.tokens[0][draft.tree.exists[0]].tolist()[1:]


def plain_lookup(text: Sequence[int], depth: int, continuation: int) -> list[int]:
    """What the original code copies: the first place where the longest n-gram occurs with enough behind it."""
    for size in (3, 2, 1):
        for start in range(len(text)):
            end = start + size
            if size <= len(text) and end + continuation <= len(text) and list(text[start:end]) == list(text[-size:]):
                return list(text[end : end + depth])
    return []


@pytest.mark.parametrize(
    ("text", "continuation", "end"),
    [
        ([1, 2, 3, 9, 3, 8, 1, 2, 3], 1, 3),  # three tokens match before one does
        ([3, 9, 1, 2, 3, 8, 5, 2, 3], 1, 5),  # two tokens, although one matches earlier
        ([3, 7, 3, 8, 3], 1, 1),  # the earliest of several
        ([3, 7, 3, 8, 3], 4, 1),
        ([3, 7, 3, 8, 3], 5, None),  # too little text behind every match
        ([1, 2, 3], 1, None),  # the n-gram itself is no match
        ([4, 4], 1, 1),  # but it may overlap with itself
        ([4], 1, None),
    ],
)
def test_rules_of_matching(text, continuation, end):
    assert find_ngram(text, [], SIZES, continuation) == end


def test_path_tokens_take_part_but_are_not_copied_from():
    assert find_ngram([1, 2, 3, 9], [1, 2], SIZES, 1) == 2
    assert find_ngram([5, 6], [7, 7], SIZES, 1) is None


def test_copying_stops_at_the_end_of_the_text():
    prompt = [1, 2, 3, 4, 1]
    assert chain_tokens(lookup(prompt), prompt[-1], depth=10) == [2, 3, 4, 1]


def test_a_chain_copies_one_passage():
    prompt = [1, 2, 9, 9, 2, 7, 7, 1]  # looked up afresh, the copied 2 9 9 would still follow; the second 2 goes to 7
    assert chain_tokens(lookup(prompt), prompt[-1], depth=6) == [2, 9, 9, 2, 7, 7]


def test_matches_in_the_output():
    drafter = lookup([1, 2, 3])
    tree = TokenTree.root(torch.tensor([3])).add(torch.tensor([[0]]), torch.tensor([[8]]), torch.zeros(1, 1))
    drafter.commit(tree, Accepted(torch.tensor([[0, 1]]), torch.tensor([3])))
    assert chain_tokens(drafter, 3, depth=2) == [8, 3]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=24), st.integers(1, 6), st.integers(1, 10))
def test_chain_equals_a_plain_implementation(text, depth, continuation):
    assert chain_tokens(lookup(text, continuation), text[-1], depth) == plain_lookup(text, depth, continuation)


def test_skipped_layers_are_really_skipped():
    tokens = torch.randint(1, VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))
    model: Any = tiny_llama()
    skipping = without_layers(model, [1, 2])
    removed: Any = tiny_llama()
    removed.model.layers = nn.ModuleList([removed.model.layers[0], removed.model.layers[3]])
    logits = skipping(tokens, use_cache=False).logits
    assert torch.equal(logits, removed(tokens, use_cache=False).logits)
    assert torch.equal(model(tokens, use_cache=False).logits, tiny_llama()(tokens, use_cache=False).logits)
    assert not torch.allclose(logits, model(tokens, use_cache=False).logits)


def test_layer_skip_shares_weights_and_cache():
    target = TreeModel(tiny_llama())
    drafter = LayerSkip("layer_skip", target, [2])
    storage = {name: weight.data_ptr() for name, weight in target.model.named_parameters()}
    own = {name: weight.data_ptr() for name, weight in drafter.model.named_parameters()}
    assert own.items() <= storage.items()
    assert not any(name.startswith("model.layers.2.") for name in own)
    target.allocate(1, 32)
    drafter.allocate(1, 32)
    assert drafter._cache() is target.cache
    assert drafter.cache is None


def test_layer_that_does_not_exist():
    with pytest.raises(TreebenchError, match=r"^layer_skip: the target has layers 0 to 3, there is no layer 4$"):
        without_layers(tiny_llama(), [1, 4])
    with pytest.raises(TreebenchError, match="there is no layer -1"):
        without_layers(tiny_llama(), [-1])


def test_unknown_layout():
    model: Any = tiny_llama()
    assert layer_list_path(model) == "model.layers"
    model.config.num_hidden_layers = 3
    with pytest.raises(TreebenchError, match=r"layers of .llama. .*: expected one list of 3 .* found 0"):
        without_layers(model, [1])


def test_small_model_needs_the_same_tokenizer(tmp_path):
    folder = save_model(tmp_path / "draft")
    target, options = TreeModel(tiny_llama()), {"path": str(folder), "revision": None}
    swapped = tiny_tokenizer([*VOCABULARY[:-2], VOCABULARY[-1], VOCABULARY[-2]])
    same = LoadedModel(target.model, tiny_tokenizer(), "big", "", ())
    assert create_drafter("small_model", target, same, options).name == "draft"
    other = LoadedModel(target.model, swapped, "big", "", ())
    with pytest.raises(TreebenchError, match="drafter draft has another tokenizer than target big"):
        create_drafter("small_model", target, other, options)


@pytest.mark.parametrize(
    ("kind", "options", "line"),
    [
        ("none", {"skip": []}, "drafter none has no option 'skip'"),
        ("layerskip", {}, r"unknown drafter 'layerskip' \(did you mean 'layer_skip'\?\); choose one of: "),
        ("layer_skip", {}, "drafter layer_skip needs the option 'skip'"),
        ("layer_skip", {"skip": [1], "skp": 1}, r"has no option 'skp' \(did you mean 'skip'\?\); it has skip"),
        ("layer_skip", {"skip": "1"}, "drafter.skip is '1'; layer_skip needs a list"),
        ("prompt_lookup", {"max_ngram": 2.5}, "drafter.max_ngram is 2.5; prompt_lookup needs a whole number"),
    ],
)
def test_registry_errors(kind, options, line):
    model = TreeModel(tiny_llama())
    loaded = LoadedModel(model.model, tiny_tokenizer(), "big", "", ())
    with pytest.raises(TreebenchError, match=line):
        create_drafter(kind, model, loaded, options)


def test_a_name_is_registered_once():
    registry: Registry[Any] = Registry("algorithm", "backend.ops")
    first, second = (lambda: None), (lambda: None)
    second.__module__ = "elsewhere"
    registry.register("mine")(first)
    registry.register("mine")(first)  # the same file, imported again
    with pytest.raises(TreebenchError, match="'mine' is registered twice"):
        registry.register("mine")(second)

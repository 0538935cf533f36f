"""Tree logits of many architectures against plain eager forwards of every node's path; the rest is refused by name."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.errors import TreebenchError
from backend.model import TreeModel, max_context
from backend.tree import NO_NODE, Accepted, TokenTree
from tests.architectures import REFUSED, SUPPORTED, VOCAB, WINDOWED, config_of, random_model, same_model

PREFIXES = (5, 17, 11)
LEVELS = (  # parents per row; rows miss nodes in different places
    torch.tensor([[0, 0, 0], [0, NO_NODE, 0], [0, 0, NO_NODE]]),
    torch.tensor([[1, 1, 3, 2], [3, 1, NO_NODE, 3], [2, NO_NODE, 1, 2]]),
    torch.tensor([[6, 5, 4], [NO_NODE, 4, 7], [7, 6, NO_NODE]]),
    torch.tensor([[8, 9], [10, NO_NODE], [8, 8]]),
)
PATHS = torch.tensor([[0, 3, 6, 8, 11], [0, 3, 7, 10, NO_NODE], [0, 2, NO_NODE, NO_NODE, NO_NODE]])


class Rows(NamedTuple):
    """Committed tokens per row, the reference for what a cache holds."""

    prefixes: list[list[int]]

    def padded(self) -> tuple[Tensor, Tensor]:
        longest = max(map(len, self.prefixes))
        rows = [prefix + [0] * (longest - len(prefix)) for prefix in self.prefixes]
        return torch.tensor(rows, dtype=torch.int64), torch.tensor([len(prefix) for prefix in self.prefixes])

    def after(self, tree: TokenTree, path: Tensor) -> "Rows":
        kept = [tree.tokens[row, path[row][path[row] != NO_NODE]].tolist() for row in range(len(self.prefixes))]
        return Rows([prefix + tokens for prefix, tokens in zip(self.prefixes, kept, strict=True)])


def random_tree(seed: int) -> TokenTree:
    generator = torch.Generator().manual_seed(seed)
    tree = TokenTree.root(torch.randint(3, VOCAB, (len(PREFIXES),), generator=generator))
    for parents in LEVELS:
        tokens = torch.randint(3, VOCAB, parents.shape, generator=generator)
        tree = tree.add(parents, tokens, torch.zeros(parents.shape))
    return tree


def all_nodes(tree: TokenTree) -> Tensor:
    return torch.arange(tree.num_nodes).masked_fill(~tree.exists, NO_NODE)


def path_tokens(tree: TokenTree, row: int, node: int) -> list[int]:
    path = []
    while node != NO_NODE:
        path.append(int(tree.tokens[row, node]))
        node = int(tree.parents[row, node])
    return path[::-1]


@torch.inference_mode()
def path_logits(model: PreTrainedModel, rows: Rows, tree: TokenTree) -> Tensor:
    """Logits after every existing node, from plain forwards of its path (same lengths batched); NaN elsewhere."""
    logits = torch.full((*tree.tokens.shape, VOCAB), torch.nan)
    texts: dict[int, list[tuple[int, int, list[int]]]] = {}
    for row, node in tree.exists.nonzero().tolist():
        text = rows.prefixes[row] + path_tokens(tree, row, node)
        texts.setdefault(len(text), []).append((row, node, text))
    for group in texts.values():
        found = model(torch.tensor([text for *_, text in group]), use_cache=False).logits[:, -1].float()
        for (row, node, _), one in zip(group, found, strict=True):
            logits[row, node] = one
    return logits


def start(model: TreeModel, seed: int = 0) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    rows = Rows([torch.randint(3, VOCAB, (length,), generator=generator).tolist() for length in PREFIXES])
    model.allocate(len(PREFIXES), 64)
    with torch.inference_mode():
        model.prefill(*rows.padded())
    return rows


@torch.inference_mode()
def grow(model: TreeModel, tree: TokenTree, calls: list[slice]) -> Tensor:
    return torch.cat([model.expand(tree, all_nodes(tree)[:, part]) for part in calls], 1).float()


def largest_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected)[~expected.isnan()].abs().max())


def check_two_steps(name: str, dtype: torch.dtype = torch.float32) -> float:
    """The largest error over one-shot and two-call expansion, a commit and another step."""
    reference = random_model(config_of(name), dtype)
    model = TreeModel(same_model(reference))
    tree, second = random_tree(1), random_tree(2)
    rows = start(model)
    expected = path_logits(reference, rows, tree)
    errors = [largest_error(grow(model, tree, [slice(None)]), expected)]
    start(model)
    errors.append(largest_error(grow(model, tree, [slice(0, 5), slice(5, None)]), expected))
    with torch.inference_mode():
        model.commit(tree, Accepted(PATHS, second.tokens[:, 0]))
    expected = path_logits(reference, rows.after(tree, PATHS), second)
    errors.append(largest_error(grow(model, second, [slice(None)]), expected))
    assert model._cache().lengths.tolist() == [len(row) for row in rows.after(tree, PATHS).prefixes]
    return max(errors)


@pytest.mark.parametrize("name", SUPPORTED)
def test_every_node_scores_as_a_plain_forward_of_its_path(name, record_property):
    error = check_two_steps(name)
    record_property("largest_error", error)
    assert error < 1e-5


@pytest.mark.parametrize("name", WINDOWED)
def test_windows_are_small_enough_to_matter(name):
    reference = random_model(config_of(name))
    rows, tree = Rows([[3 + i for i in range(length)] for length in PREFIXES]), random_tree(1)
    narrow = path_logits(reference, rows, tree)
    wide = path_logits(same_model(reference, sliding_window=100), rows, tree)
    assert largest_error(wide, narrow) > 1e-2


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_bf16_is_as_close_to_fp32_as_eager_bf16_is(name):
    """A rounding at another place may flip a router, so the bound is relative to the spread of the logits."""
    reference = random_model(config_of(name), torch.bfloat16)
    model, tree = TreeModel(same_model(reference)), random_tree(1)
    rows = start(model)
    exact = path_logits(random_model(config_of(name)), rows, tree)
    real = tree.exists
    ours = (grow(model, tree, [slice(None)]) - exact)[real].norm() / exact[real].norm()
    eager = (path_logits(reference, rows, tree) - exact)[real].norm() / exact[real].norm()
    assert ours < max(1.3 * eager, 0.02)


def test_the_models_own_config_and_a_copy_of_it_stay_apart():
    reference = random_model(config_of("llama"))
    TreeModel(same_model(reference))
    assert reference.config._attn_implementation == "eager"


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_verified_is_refused_by_name_in_one_line(name):
    refused = REFUSED[name]
    model = refused.auto.from_config(config_of(name, **refused.options)).eval()
    with pytest.raises(TreebenchError, match=refused.reason) as error:
        TreeModel(model)
    line = str(error.value)
    assert repr(model.config.model_type) in line
    assert "\n" not in line


def test_contexts_end_where_chunks_or_long_rotary_factors_begin():
    longrope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 1e4}
    phi3 = config_of("phi3", rope_parameters=longrope, original_max_position_embeddings=32)
    assert max_context(phi3) == 32
    assert max_context(config_of("llama4_text")) == 64
    assert max_context(config_of("llama")) == 128

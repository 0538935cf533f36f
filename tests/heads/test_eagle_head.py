"""The EAGLE drafter against a plain implementation of both heads, over whole decodes with ragged rows."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import pytest
import torch

from algorithms.growth import Children, Growth
from algorithms.registry import create
from backend.acceptance import create_rule
from backend.drafters.eagle_head import EagleHeadDrafter
from backend.errors import TreebenchError
from backend.head_loading import load_head
from backend.model import TreeModel
from backend.random import RandomStream
from backend.sampling import Sampler
from backend.timing import Stopwatch
from backend.tree import NO_NODE, TokenTree
from runners.decoding import Decoder, Request, generate
from runners.stopwatching import Pieces, medians
from tests.by_turns import ByTurns
from tests.heads.checkpoints import plain_log_probs, random_head, write_head
from tests.parts import LIMITS, options_of, prompts
from tests.tiny_models import tiny_llama

SHORT = replace(LIMITS, max_new_tokens=6)
CASES = [("eagle2", True), ("fixed_tree", True), ("chain", False), ("by_turns", True), ("by_turns", False)]
SIZES = {"eagle2": {"depth": 3, "top_k": 3, "total_tokens": 9}, "chain": {"depth": 3}, "fixed_tree": {"widths": [3, 2]}}


class Compared:
    """Passes on to the drafter and compares what it says about every node with the plain implementation."""

    def __init__(self, drafter: EagleHeadDrafter, weights: Any, plain: Any, texts: list[list[int]], eagle3: bool):
        self.drafter, self.weights, self.plain, self.eagle3 = drafter, weights, plain, eagle3
        self.texts = [list(text) for text in texts]  # committed tokens and the root
        self.tokens = slice(None) if drafter.draft_tokens is None else drafter.draft_tokens
        self.num_checked = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.drafter, name)

    def expand(self, tree: TokenTree, nodes: torch.Tensor) -> torch.Tensor:
        return self.checked(tree, nodes, self.drafter.expand(tree, nodes), slice(None))

    def likeliest(self, tree: TokenTree, nodes: torch.Tensor, width: int) -> Any:
        with patch.object(self.drafter, "expand_drafted", partial(self.expand_drafted, self.drafter.expand_drafted)):
            return self.drafter.likeliest(tree, nodes, width)

    def expand_drafted(self, expand: Any, tree: TokenTree, nodes: torch.Tensor) -> torch.Tensor:
        return self.checked(tree, nodes, expand(tree, nodes), self.tokens)

    def checked(self, tree: TokenTree, nodes: torch.Tensor, log_probs: torch.Tensor, tokens: Any) -> torch.Tensor:
        for row, place in (nodes != NO_NODE).nonzero().tolist():
            path, node = [], int(nodes[row, place])
            while node > 0:
                path.insert(0, int(tree.tokens[row, node]))
                node = int(tree.parents[row, node])
            text = self.texts[row]
            wanted = plain_log_probs(self.weights, self.plain, self.features(text), text + path, self.eagle3)
            torch.testing.assert_close(log_probs[row, place], wanted[tokens], atol=2e-4, rtol=1e-4)
            self.num_checked += 1
        return log_probs

    def features(self, text: list[int]) -> torch.Tensor:
        """Of all committed tokens but the root, by transformers' own forward."""
        layers = [0, 2, 3] if self.eagle3 else [4]
        states = self.plain(input_ids=torch.tensor([text[:-1]]), output_hidden_states=True).hidden_states
        return torch.cat([states[layer][0] for layer in layers], 1)

    def commit(self, tree: TokenTree, accepted: Any, verified: Any) -> None:
        for row, emitted in enumerate(accepted.emitted(tree)):
            self.texts[row] += emitted
        self.drafter.commit(tree, accepted, verified)


def drafter_for(tmp_path, eagle3: bool) -> tuple[TreeModel, EagleHeadDrafter, Any]:
    config, weights = random_head(eagle3)
    target = TreeModel(tiny_llama())
    head, layers = load_head(str(write_head(tmp_path / "head", config, weights)), target.model)
    return target, EagleHeadDrafter("eagle_head", head, target, layers), weights


@pytest.mark.lossless
@pytest.mark.parametrize(("algorithm", "eagle3"), CASES)
def test_drafts_are_those_of_a_plain_implementation(algorithm, eagle3, tmp_path):
    target, drafter, weights = drafter_for(tmp_path, eagle3)
    texts = prompts([5, 8, 2])
    with torch.inference_mode():
        compared: Any = Compared(drafter, weights, tiny_llama(), texts, eagle3)
    if algorithm == "by_turns":
        policy = ByTurns(compared)
    else:
        policy = create(algorithm, compared, options_of(algorithm, SIZES[algorithm]))
    requests = [Request(i, text) for i, text in enumerate(texts)]
    plain = create("autoregressive", None, {})

    def answers(algorithm: Any, drafter: Any) -> list[list[int]]:
        decoder = Decoder(target, algorithm, drafter, create_rule("greedy"), Sampler(0.0), 0)
        return generate(decoder, requests, SHORT, Stopwatch(target.device)).tokens

    assert answers(policy, compared) == answers(plain, None)
    assert compared.num_checked > 20


@torch.inference_mode()
def test_all_levels_in_one_call_equal_level_by_level(tmp_path):
    target, drafter, _ = drafter_for(tmp_path, eagle3=True)
    text, lengths = torch.tensor([[3, 1, 4, 1]]), torch.tensor([4])
    tree = TokenTree.root(torch.tensor([5]))
    tree = tree.add(torch.tensor([[0, 0]]), torch.tensor([[7, 8]]), torch.zeros(1, 2))
    tree = tree.add(torch.tensor([[1, 2]]), torch.tensor([[9, 10]]), torch.zeros(1, 2))

    def start() -> None:
        target.allocate(1, 32)
        drafter.allocate(1, 32)
        target.prefill(text, lengths)
        drafter.prefill(text, lengths)

    start()
    together = drafter.expand(tree, torch.tensor([[0, 1, 2, 3, 4]]))
    start()
    apart = torch.cat([drafter.expand(tree, torch.tensor([level])) for level in ([0], [1, 2], [3, 4])], 1)
    start()
    leaves_only = drafter.expand(tree, torch.tensor([[3, 4]]))
    torch.testing.assert_close(together, apart)
    torch.testing.assert_close(leaves_only, apart[:, 3:])


@torch.inference_mode()
def test_the_likeliest_are_found_among_the_draft_tokens_as_among_all(tmp_path):
    target, drafter, _ = drafter_for(tmp_path, eagle3=True)
    found = []
    for asked in (drafter, SimpleNamespace(expand=drafter.expand)):
        for model in (target, drafter):
            model.allocate(1, 32)
            model.prefill(torch.tensor([[3, 1, 4, 1]]), torch.tensor([4]))
        random = RandomStream.keyed(0, torch.tensor([0]), torch.tensor([4]))
        growth = Growth(TokenTree.root(torch.tensor([5])), cast(Any, asked), Children.named("top_k", 1.0), random)
        nodes = growth.expand(growth.root, 4)
        found += [growth.propose(nodes, 4)]
    torch.testing.assert_close(found[0], found[1], atol=0, rtol=0)


@torch.inference_mode()
def test_a_step_can_be_timed_without_a_text(tmp_path):
    """As calibration does: caches of a length, and nothing read."""
    target, drafter, _ = drafter_for(tmp_path, eagle3=True)
    pieces = Pieces(target, drafter, batch=2, context=16, widest=4)
    for step in (pieces.draft(3), pieces.verify(3, commits_to_drafter=True)):
        assert medians(step, 2, 10.0)[0] > 0


BROKEN = {
    "lacks norm.weight": lambda config, weights: weights.pop("norm.weight"),
    "has unknown extra.weight": lambda config, weights: weights.update({"extra.weight": torch.zeros(1)}),
    r"down_proj.weight has shape \(32, 48\), the configuration says \(32, 49\)": lambda config, weights: config.update(
        intermediate_size=49
    ),
    "made for a target of hidden size 64; this one has 32": lambda config, weights: config.update(hidden_size=64),
    "made for a target of vocabulary 99; this one has 61": lambda config, weights: config.update(vocab_size=99),
    "d2t does not name distinct tokens": lambda config, weights: weights["d2t"].add_(60),
}


@pytest.mark.parametrize("message", BROKEN)
def test_mismatched_heads_are_refused_by_name(message, tmp_path):
    config, weights = random_head(eagle3=True)
    BROKEN[message](config, weights)
    with pytest.raises(TreebenchError, match=message):
        load_head(str(write_head(tmp_path / "head", config, weights)), tiny_llama())


def test_pickles_and_damaged_files_are_refused(tmp_path):
    config, weights = random_head(eagle3=True)
    folder = write_head(tmp_path / "head", config, weights)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(TreebenchError, match=r"model\.safetensors is damaged .*: download or write it again"):
        load_head(str(folder), tiny_llama())
    file.rename(folder / "pytorch_model.bin")
    with pytest.raises(TreebenchError, match=r"holds no model\.safetensors: .* pickled \.bin .*save_file"):
        load_head(str(folder), tiny_llama())
    with pytest.raises(TreebenchError, match=r"there is no model folder .*: check drafter\.path"):
        load_head(str(tmp_path / "absent"), tiny_llama())

"""The first two tokens sampled from the real model follow its exact probabilities, with every acceptance rule.

Both tokens need few laws of the model: after the prompt, and after each first token that top-k keeps. These are
computed once and handed to the production algorithms and rules in large batches, over the tokens that can occur.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from scipy.stats import chi2
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from algorithms.base import TreeAlgorithm
from algorithms.growth import Growth, Offspring
from algorithms.registry import create
from backend.acceptance import RULES, AcceptanceRule, create_rule
from backend.drafters.layer_skip import without_layers
from backend.loading import load_target
from backend.model import TreeModel
from backend.random import RandomStream
from backend.sampling import Sampler
from backend.tree import Draft, TokenTree
from tests.parts import options_of

pytestmark = [pytest.mark.slow, pytest.mark.lossless, pytest.mark.xdist_group("real model")]
TOP_K, TEMPERATURE = 20, 0.7
SAMPLER = Sampler(TEMPERATURE, top_k=TOP_K)
DRAWS, BATCH = 20_000, 4_000
SMALLEST_CELL = 5
PROMPTS = ("The best thing about the sea is", "def sort(values):\n   ", "Once upon a time there was a")
ALGORITHMS: dict[str, tuple[str, dict[str, Any]]] = {
    "eagle2": ("eagle2", {"depth": 1, "top_k": 3, "total_tokens": 8}),
    "chain": ("chain", {"depth": 2, "children": "iid"}),
    "iid": ("fixed_tree", {"widths": [3, 2], "children": "iid"}),
    "without": ("fixed_tree", {"widths": [3, 2], "children": "without_replacement"}),
    "dyspec": ("dyspec", {"budget": 6, "children": "without_replacement"}),
}
CASES = [
    ("eagle2", "target_sampling"),
    ("iid", "multi_step"),
    ("without", "recursive_rejection"),
    ("dyspec", "recursive_rejection"),
    ("chain", "traversal"),
    ("dyspec", "traversal"),
]
ALPHA = 1e-3 / (len(CASES) * len(PROMPTS))


@dataclass(frozen=True)
class Laws:
    """Log-probabilities over the tokens that can occur: row 0 after the prompt, row 1 + t after first token t."""

    target: Tensor
    draft: Tensor
    exact: Tensor  # (first, second) probabilities, from the model's full logits in fp64


class Memoised:
    """A drafter over the table; `committed` says how many tokens of each row come before its root's successor."""

    name = "memoised"

    def __init__(self, laws: Tensor) -> None:
        self.laws = laws
        self.committed = 0

    def allocate(self, batch: int, capacity: int) -> None: ...

    def prefill(self, *_: Any) -> None: ...

    def commit(self, *_: Any) -> None: ...

    def expand(self, tree: TokenTree, nodes: Tensor) -> Tensor:
        """What comes beyond the second token is nobody's concern; any law may stand there."""
        at = nodes.clamp(min=0)
        first = tree.depths.gather(1, at) + self.committed == 0
        return self.laws[torch.where(first, 0, 1 + tree.tokens.gather(1, at))]


@cache
def models() -> tuple[Any, TreeModel, TreeModel]:
    config: Any = OmegaConf.to_container(OmegaConf.load(Path(__file__).parent.parent / "conf/target/smollm2.yaml"))
    loaded = load_target(config)
    target = TreeModel(loaded.model)
    return loaded.tokenizer, target, TreeModel(without_layers(loaded.model, range(12, 18)), target.shapes)


def kept(logits: Tensor) -> Tensor:
    """The sampler's law, written down once more in fp64."""
    top = logits.double().topk(TOP_K).indices
    return torch.zeros_like(logits, dtype=torch.float64).scatter(
        -1, top, (logits.double().gather(-1, top) / TEMPERATURE).softmax(-1)
    )


@cache
@torch.inference_mode()
def laws_after(prompt: str) -> Laws:
    tokenizer, target, draft = models()
    start = tokenizer(prompt)["input_ids"]
    root = target.score_text(torch.tensor([start]), last=1)[0, 0]
    first = root.topk(TOP_K).indices.sort().values
    texts = torch.cat([torch.tensor([start]).expand(TOP_K, -1), first[:, None]], 1)
    after = target.score_text(texts, last=1)[:, 0]
    chances = kept(after)
    words = torch.cat([first, chances.nonzero()[:, 1]]).unique()
    places = torch.searchsorted(words, first)
    drafted = draft.score_text(texts, last=2)
    exact = torch.zeros(len(words), len(words), dtype=torch.float64)
    exact[places] = kept(root)[first][:, None] * chances[:, words]
    return Laws(_table(root, after, words, places), _table(drafted[0, 0], drafted[:, 1], words, places), exact)


def _table(root: Tensor, after: Tensor, words: Tensor, places: Tensor) -> Tensor:
    """First tokens that the target never emits get the root's law: nothing below them is ever reached."""
    table = root[words].expand(len(words) + 1, -1).clone()
    table[1 + places] = after[:, words]
    return table.log_softmax(-1)


def algorithm_for(name: str, drafter: Any) -> TreeAlgorithm:
    algorithm, options = ALGORITHMS[name]
    values = options_of(algorithm, options)
    return create(algorithm, drafter, values | ({"draft_temperature": 0.9} if "draft_temperature" in values else {}))


def decode_step(name: str, rule: AcceptanceRule, laws: Laws, roots: Tensor, keys: Tensor, committed: int) -> Tensor:
    """The tokens that one production step emits, padded with -1."""
    drafter, target = Memoised(laws.draft), Memoised(laws.target)
    drafter.committed = target.committed = committed
    random = RandomStream.keyed(7, keys, torch.full_like(keys, committed + 1))
    draft: Draft = algorithm_for(name, drafter).grow(TokenTree.root(roots), random)
    emitted = rule(draft, target.expand(draft.tree, draft.nodes), SAMPLER, random).emitted(draft.tree)
    return pad_sequence([torch.tensor(tokens) for tokens in emitted], batch_first=True, padding_value=-1)


def two_tokens(name: str, rule: str, laws: Laws, keys: Tensor) -> Tensor:
    """Rows whose first step emits one token take a second step from there."""
    decide = create_rule(rule)
    tokens = torch.nn.functional.pad(decode_step(name, decide, laws, torch.zeros_like(keys), keys, 0), (0, 1), value=-1)
    short = (tokens[:, 1] < 0).nonzero()[:, 0]
    if len(short):
        tokens[short, 1] = decode_step(name, decide, laws, tokens[short, 0], keys[short], 1)[:, 0]
    return tokens[:, :2]


@torch.inference_mode()
def p_value(name: str, rule: str, prompt: str) -> float:
    """Of the chi-square test over pairs of tokens; rare pairs form one cell."""
    laws = laws_after(prompt)
    pairs = torch.cat([two_tokens(name, rule, laws, keys) for keys in torch.arange(DRAWS).split(BATCH)])
    size = len(laws.exact)
    observed = torch.bincount(pairs[:, 0] * size + pairs[:, 1], minlength=size * size).double()
    expected = laws.exact.flatten() * DRAWS
    assert observed[expected == 0].sum() == 0, "a token outside of the target's support was emitted"
    rare = expected < SMALLEST_CELL
    cells = [torch.cat([counts[~rare], counts[rare].sum()[None]]) for counts in (observed, expected)]
    assert len(cells[0]) > 20
    return float(chi2.sf(float(((cells[0] - cells[1]) ** 2 / cells[1]).sum()), len(cells[0]) - 1))


def test_every_lossless_rule_is_tested():
    rules = [RULES[name](name=name) for name in RULES]
    assert {rule for _, rule in CASES} == {rule.name for rule in rules if rule.lossless and not rule.greedy_only}


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize(("algorithm", "rule"), CASES)
def test_first_two_tokens_follow_the_target(algorithm, rule, prompt):
    assert p_value(algorithm, rule, prompt) > ALPHA


_propose = Growth.propose


def resorted(growth: Growth, nodes: Tensor, width: int) -> Offspring:
    """Siblings by probability instead of in draw order."""
    tokens, log_probs = _propose(growth, nodes, width)
    order = log_probs.argsort(dim=2, descending=True, stable=True)
    return Offspring(tokens.gather(2, order), log_probs.gather(2, order))


def top_k_said_to_be_drawn(growth: Growth, nodes: Tensor, width: int) -> Offspring:
    _propose(growth, nodes, width)
    top = growth.laws[-1].topk(width, dim=2)
    return Offspring(top.indices, top.values.log())


BUGS: dict[str, tuple[str, Callable[..., Any]]] = {
    "siblings re-sorted": ("algorithms.growth.Growth.propose", resorted),
    "top-k with a q-ratio": ("algorithms.growth.Growth.propose", top_k_said_to_be_drawn),
}


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.parametrize("rule", ["recursive_rejection", "traversal"])
def test_planted_bugs_are_seen_at_this_sample_size(bug, rule, monkeypatch):
    monkeypatch.setattr(*BUGS[bug])
    assert p_value("without", rule, PROMPTS[2]) < ALPHA

"""Self-drafts and cascades on a tiny target, and a check that a drafter's answers depend on tokens alone."""

from typing import Any

import torch

from backend.drafters.pool import Pool
from backend.drafters.registry import create_drafter
from backend.loading import LoadedModel
from backend.model import TreeModel
from backend.tree import NO_NODE, TokenTree
from tests.parts import prompts
from tests.test_loading import tiny_tokenizer
from tests.tiny_models import tiny_llama

LOOKUP = {"kind": "prompt_lookup", "max_ngram": 2, "min_ngram": 1, "continuation": 1}
SKIP = {"kind": "layer_skip", "skip": [2]}
BLOCKS = {"kind": "layer_skip", "skip": ["1.attention", "2.mlp"]}
INT8 = {"kind": "activation_quantized", "head": True, "skip": [], "fake_quant": True}  # exact: rounded per token
MEMBERS = {
    "int8": INT8,
    "skip": SKIP,
    "blocks": BLOCKS,
    "lookup": LOOKUP,
    "vc_int8": {"kind": "vertical_cascade", "top": "int8", "bottom": "lookup", "lookahead": 3, "lenience": 1.0},
}
PROMPT = [5, 9, 7, 5, 9, 7, 3, 5, 9, 7, 5]


def draft(target: TreeModel, kind: str, **options: Any) -> Any:
    return create_drafter(kind, target, LoadedModel(target.model, tiny_tokenizer(), "tiny", "", ()), options)


def pool(target: TreeModel) -> Pool:
    return draft(target, "pool", members=MEMBERS)


def ready(target: TreeModel, drafter: Any, rows: list[list[int]]) -> Any:
    """Target and drafter have read all of the rows but their last tokens, the roots."""
    longest = max(map(len, rows))
    padded = [[*row[:-1], *[0] * (longest - len(row))] for row in rows]
    texts = torch.tensor(padded, dtype=torch.int64).reshape(len(rows), longest - 1)
    lengths = torch.tensor([len(row) - 1 for row in rows])
    target.allocate(len(rows), 256)
    drafter.allocate(len(rows), 256)
    target.prefill(texts, lengths)
    drafter.prefill(texts, lengths)
    return drafter


def random_tree(rows: list[list[int]], seed: int = 0) -> TokenTree:
    """Three levels of two nodes a row; one row lacks its last node."""
    tree = TokenTree.root(torch.tensor([row[-1] for row in rows]))
    tokens = torch.tensor([prompts([6], seed=seed + b)[0] for b in range(len(rows))])
    tokens[:, 0] = 9  # what prompt lookup expects after 5
    for level in range(3):
        above = torch.tensor([[0, 0]]) if level == 0 else torch.tensor([[2 * level - 1, 2 * level]])
        parents = above.expand(len(rows), -1).clone()
        if level == 2:
            parents[-1, 1] = NO_NODE
        tree = tree.add(parents, tokens[:, 2 * level : 2 * level + 2], torch.zeros(parents.shape))
    return tree


def target_of(seed: int = 0) -> TreeModel:
    return TreeModel(tiny_llama(seed))

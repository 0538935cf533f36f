"""Drafters over tables of probabilities, and how the tests of policies build, grow and read trees."""

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from algorithms.base import TreeAlgorithm
from algorithms.registry import create
from backend.random import RandomStream
from backend.tree import NO_NODE, Accepted, Draft, TokenTree
from tests.parts import options_of

Path = tuple[int, ...]
Law = Callable[[Path], list[float]]  # after the drafted tokens of a path, () at the root


class TableDrafter:
    """Its law after a node depends on the drafted path alone; counts its calls and the nodes asked about."""

    name = "table"

    def __init__(self, law: Law) -> None:
        self.law = law
        self.calls = 0
        self.asked = 0

    def allocate(self, batch: int, capacity: int) -> None: ...

    def prefill(self, prompts: Tensor, lengths: Tensor) -> None: ...

    def expand(self, tree: TokenTree, nodes: Tensor) -> Tensor:
        self.calls += 1
        self.asked += int((nodes != NO_NODE).sum())
        known = [
            [self.law(path_of(tree, row, max(node, 0))) for node in some] for row, some in enumerate(nodes.tolist())
        ]
        return torch.tensor(known).log()

    def commit(self, tree: TokenTree, accepted: Accepted, verified: Any) -> None: ...


def path_of(tree: TokenTree, row: int, node: int) -> Path:
    parent = int(tree.parents[row, node])
    return () if parent == NO_NODE else (*path_of(tree, row, parent), int(tree.tokens[row, node]))


def random_table(seed: int, vocabulary: int) -> Law:
    """A law per path, the same one whatever was drafted beside it."""

    def law(path: Path) -> list[float]:
        source = random.Random(f"{seed} {path}")
        weights = [source.random() ** 3 + 1e-3 for _ in range(vocabulary)]
        return [weight / sum(weights) for weight in weights]

    return cache(law)


def same_everywhere(*law: float) -> Law:
    return lambda path: list(law)


def make(name: str, drafter: TableDrafter, **options: Any) -> TreeAlgorithm:
    return create(name, drafter, options_of(name, {}) | options)


def grow(algorithm: TreeAlgorithm, seed: int = 0, batch: int = 1) -> Draft:
    rows = torch.arange(batch)
    return algorithm.grow(
        TokenTree.root(torch.zeros_like(rows)), RandomStream.keyed(seed, rows, torch.zeros_like(rows))
    )


def nodes_of(draft: Draft, row: int = 0) -> list[int]:
    return [node for node in draft.nodes[row].tolist() if node != NO_NODE]


def paths_of(draft: Draft, row: int = 0) -> list[Path]:
    """Token paths of the chosen nodes below the root, in order; siblings may repeat a token."""
    return [path_of(draft.tree, row, node) for node in nodes_of(draft, row)[1:]]


def assert_closed(draft: Draft) -> None:
    """Ascending, with the root, closed under parents, padded at the end, parents before children."""
    for row in range(draft.nodes.shape[0]):
        nodes, parents = nodes_of(draft, row), draft.tree.parents[row].tolist()
        assert draft.nodes[row].tolist() == nodes + [NO_NODE] * (draft.nodes.shape[1] - len(nodes))
        assert nodes[0] == 0
        assert nodes == sorted(set(nodes))
        assert all(parents[node] in nodes and parents[node] < node for node in nodes[1:])

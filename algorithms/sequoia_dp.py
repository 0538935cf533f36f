"""Sequoia's dynamic programme (Chen et al. 2024, arXiv 2402.12374, section 3.1 and its depth-bounded form).

A tree is worth the expected number of tokens it yields: the sum over its nodes, root included, of the product of the
acceptance probabilities along the path, where child number b is the first accepted one with probability p_b.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from algorithms.static_shape import Path


class BestTree(NamedTuple):
    """The shape, root left out, and its expected number of tokens per step, bonus token included."""

    paths: list[Path]
    expected_tokens: float


class _Table(NamedTuple):
    """Best trees of one depth bound, by their number of nodes (index 0: no nodes, impossible)."""

    value: np.ndarray
    num_children: np.ndarray  # of the root
    last_child: list[np.ndarray]  # [b][n]: nodes under child b of a root with b children and n nodes in all


class Programme:
    """The best trees of all sizes up to `budget` nodes below the root and all depths up to `max_depth`."""

    def __init__(self, acceptance: Sequence[float], budget: int, max_depth: int) -> None:
        self._tables = [_Table(_only(1, 1.0, budget + 2), np.zeros(budget + 2, dtype=int), [])]
        for _ in range(min(max_depth, budget)):
            self._tables.append(_deeper(self._tables[-1], acceptance))

    @property
    def expected_tokens(self) -> Float[np.ndarray, "depth node"]:
        """What the best tree of so many nodes (the root is one) that is no deeper yields; -inf where there is none."""
        return np.stack([table.value for table in self._tables])

    def tree(self, depth: int, num_nodes: int) -> BestTree:
        """`num_nodes` counts the root."""
        return BestTree(_paths(self._tables, depth, num_nodes), float(self._tables[depth].value[num_nodes]))

    def best(self) -> BestTree:
        """The one that yields most."""
        return self.tree(len(self._tables) - 1, int(self._tables[-1].value.argmax()))


def best_tree(acceptance: Sequence[float], budget: int, max_depth: int) -> BestTree:
    """The best tree of at most `budget` nodes below the root, none deeper than `max_depth`."""
    return Programme(acceptance, budget, max_depth).best()


def expected_tokens(paths: Sequence[Path], acceptance: Sequence[float]) -> float:
    """What a shape is worth; ranks beyond the measured ones are worth nothing."""
    chance = dict(enumerate(acceptance))
    return 1.0 + sum(float(np.prod([chance.get(rank, 0.0) for rank in path])) for path in paths)


def _deeper(above: _Table, acceptance: Sequence[float]) -> _Table:
    """T[n, b] = max over m of T[n - m, b - 1] + p_b best[m], where best is from one level of depth less."""
    size = len(above.value)
    rest = np.arange(size)[:, None] - np.arange(size)  # n - m
    by_children, last_child = [_only(1, 1.0, size)], [np.zeros(size, dtype=int)]
    for probability in acceptance:
        child = np.where(np.isfinite(above.value), probability * np.nan_to_num(above.value, neginf=0.0), -np.inf)
        joined = np.where(rest > 0, by_children[-1][rest.clip(min=0)] + child, -np.inf)
        last_child.append(joined.argmax(1))
        by_children.append(joined.max(1))
    every = np.stack(by_children)
    return _Table(every.max(0), every.argmax(0), last_child)


def _only(index: int, value: float, size: int) -> np.ndarray:
    values = np.full(size, -np.inf)
    values[index] = value
    return values


def _paths(tables: list[_Table], depth: int, num_nodes: int) -> list[Path]:
    """The tree behind an entry, read back child by child from the last to the first."""
    table, paths = tables[depth], []
    for child in range(int(table.num_children[num_nodes]), 0, -1):
        below = int(table.last_child[child][num_nodes])
        paths.append((child - 1,))
        paths += [(child - 1, *path) for path in _paths(tables, depth - 1, below)]
        num_nodes -= below
    return sorted(paths)

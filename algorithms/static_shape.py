"""Trees whose shape is known beforehand: nodes are given by the ranks of the children on their paths."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int

from algorithms.growth import Growth, Offspring
from backend.errors import TreebenchError

Path = tuple[int, ...]  # (0, 2) is the third child of the root's first child


class Level(NamedTuple):
    """One level of a shape: which nodes of the level above have children, and which of their candidates are taken."""

    parents: Int[np.ndarray, " parent"]
    width: int
    places: Int[np.ndarray, " node"]  # in the flattened (parent, width) candidates


class StaticShape:
    """A shape made of paths; closed under parents and elder siblings, in any order."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = sorted(set(paths), key=lambda path: (len(path), path))
        missing = {relative for path in self.paths for relative in _required_by(path)} - {(), *self.paths}
        if missing:
            raise TreebenchError(f"a static tree needs the node {min(missing)}, which another node follows")
        self.levels = [self._level(depth) for depth in range(1, len(self.paths[-1]) + 1)] if self.paths else []

    def _level(self, depth: int) -> Level:
        above = [path for path in [(), *self.paths] if len(path) == depth - 1]
        nodes = [path for path in self.paths if len(path) == depth]
        parents = sorted({path[:-1] for path in nodes})
        width = max(path[-1] for path in nodes) + 1
        places = [parents.index(path[:-1]) * width + path[-1] for path in nodes]
        return Level(np.array([above.index(path) for path in parents]), width, np.array(places))

    def grow(self, growth: Growth) -> None:
        """One draft call per level. Nodes that the drafter has no token for stay away with all that follows them."""
        nodes = growth.root
        for level in self.levels:
            parents = nodes[:, level.parents]
            offspring = _of_width(growth.propose(parents, level.width), level.width)
            nodes = growth.add_some(parents, offspring, level.places[None])


def _required_by(path: Path) -> list[Path]:
    return [path[:-1]] + ([(*path[:-1], path[-1] - 1)] if path[-1] else [])


def _of_width(offspring: Offspring, width: int) -> Offspring:
    """Padded with nothing where the vocabulary is smaller than the tree is wide."""
    missing = width - offspring.tokens.shape[2]
    if not missing:
        return offspring
    log_probs = torch.nn.functional.pad(offspring.log_probs, (0, missing), value=-torch.inf)
    return Offspring(torch.nn.functional.pad(offspring.tokens, (0, missing)), log_probs)

"""How far a drafter's probabilities can be believed: learned on line from what verification did with them."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from backend.arrays import compiled, on_host
from backend.tree import Accepted, Draft

Floats = NDArray[np.float64]
HALVING = -np.log(2.0)  # of a log-probability
BINS = 12  # of a draft probability p: bin b holds 2^-(b + 1) < p <= 2^-b, the last one all below


@compiled
def bin_of(log_prob: float) -> int:
    return int(min(log_prob / HALVING, BINS - 1))


@compiled
def bins_of(log_probs: Float[np.ndarray, " node"]) -> NDArray[np.int64]:
    return np.array([bin_of(log_prob) for log_prob in log_probs], dtype=np.int64)


class Calibration:
    """Corrects the chance that a node is accepted after its parent: p becomes min(1, p x accepted / expected).

    Counted by depth (the last of `depths` stands for all deeper ones) and by bin of p, apart for each group of rows. A
    ratio starts at 1, or at `ratios` (depth, bin) measured beforehand, and weighs `strength` expected acceptances then.
    Only nodes whose parent was accepted say anything.
    """

    def __init__(self, depths: int, strength: float, ratios: Sequence[Sequence[float]] | None) -> None:
        self.strength = strength
        self.prior = np.ones((depths, BINS))
        for depth, row in enumerate((ratios or [])[:depths]):
            self.prior[depth, : len(row)] = row[:BINS]
        self.forget(1)

    def forget(self, groups: int) -> None:
        self.expected = np.zeros((groups, *self.prior.shape))
        self.accepted = np.zeros((groups, *self.prior.shape))
        self._update()

    def _update(self) -> None:
        self.ratios = (self.accepted + self.strength * self.prior) / (self.expected + self.strength)

    def corrected(self, log_probs: Float[np.ndarray, "row node"], depth: int) -> Floats:
        """Chances of nodes of one depth (1: below the root), given that their parents were accepted."""
        return _corrected(log_probs, self.ratios[:, min(depth, len(self.prior)) - 1])

    def learn(self, draft: Draft, accepted: Accepted) -> None:
        """Count what was verified below an accepted node; finished rows say nothing."""
        tree = draft.tree
        arrays = (on_host(x) for x in (draft.nodes, tree.parents, tree.depths, tree.log_probs, accepted.path))
        _count(self.expected, self.accepted, *arrays)
        self._update()


@compiled
def _corrected(log_probs: Float[np.ndarray, "row node"], ratios: Float[np.ndarray, "group bin"]) -> Floats:
    chances = np.empty(log_probs.shape)
    for row, i in np.ndindex(log_probs.shape):
        log_prob = np.float64(log_probs[row, i])
        chances[row, i] = min(1.0, np.exp(log_prob) * ratios[row % len(ratios), bin_of(log_prob)])
    return chances


@compiled
def _count(expected: Floats, accepted: Floats, nodes, parents, depths, log_probs, path) -> None:
    """Add to the counts, (group, depth, bin), what was verified below an accepted node."""
    for row in range(len(nodes)):
        on_path = np.zeros(parents.shape[1] + 1, np.bool_)
        on_path[path[row]] = True
        on_path[-1] = False  # of padding
        for node in nodes[row]:
            if node > 0 and on_path[parents[row, node]]:
                depth, log_prob = min(depths[row, node], expected.shape[1]) - 1, np.float64(log_probs[row, node])
                cell = (row % len(expected), depth, bin_of(log_prob))
                expected[cell] += np.exp(log_prob)
                accepted[cell] += on_path[node]

"""How far a drafter's probabilities can be believed: learned on line from what verification did with them."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from backend.arrays import on_host, pick
from backend.tree import NO_NODE, Accepted, Draft

Floats = NDArray[np.float64]
HALVINGS = -1 / np.log(2.0)  # times a log-probability: how often 1 is halved
BINS = 12  # of a draft probability p: bin b holds 2^-(b + 1) < p <= 2^-b, the last one all below


def bins_of(log_probs: Float[np.ndarray, "..."]) -> NDArray[np.int64]:
    return np.minimum(log_probs * HALVINGS, BINS - 1).astype(np.int64)


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
        chances = np.exp(log_probs, dtype=np.float64)
        chances *= pick(self.ratios[:, min(depth, len(self.prior)) - 1], bins_of(log_probs))
        return np.minimum(chances, 1.0, out=chances)

    def learn(self, draft: Draft, accepted: Accepted) -> None:
        """Count what was verified below an accepted node; finished rows say nothing."""
        tree = draft.tree
        nodes, parents, depths = (on_host(x) for x in (draft.nodes, tree.parents, tree.depths))
        log_probs, path = on_host(tree.log_probs), on_host(accepted.path)
        on_path = np.zeros((len(parents), parents.shape[1] + 1), dtype=bool)
        np.put_along_axis(on_path, np.where(path == NO_NODE, parents.shape[1], path), True, axis=1)
        on_path[:, -1] = False
        rows, places = np.nonzero(nodes > 0)
        tried = nodes[rows, places]
        below = on_path[rows, parents[rows, tried]]
        rows, tried = rows[below], tried[below]
        group = rows if len(self.ratios) > 1 else np.zeros_like(rows)
        cell = (group, np.minimum(depths[rows, tried], len(self.prior)) - 1, bins_of(log_probs[rows, tried]))
        np.add.at(self.expected, cell, np.exp(log_probs[rows, tried], dtype=np.float64))
        np.add.at(self.accepted, cell, on_path[rows, tried].astype(float))
        self._update()

"""One action of DyTC: a configuration drafts a chain from a leaf, with alternatives beside it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from algorithms.dytc import Choice
from algorithms.dytc_state import Action, RowState
from algorithms.growth import Growth, Offspring
from backend.tree import NO_NODE


class Shape(NamedTuple):
    """Which nodes an action may add (see `cas_spec`), and what verifying each of them takes."""

    max_nodes: int
    width: int
    ranked: bool
    sibling_share: float
    node_seconds: float
    prune: bool  # leave out alternatives that are not worth their verification


class ChainDrafting:
    """The action in all rows that chose the configuration; a pass is one draft forward for all of them."""

    def __init__(
        self, growth: Growth, states: Sequence[RowState], choices: Sequence[Choice | None], shape: Shape
    ) -> None:
        self.growth, self.states, self.choices, self.shape = growth, states, choices, shape
        self.frontiers = [self._first_frontier(row) if choice else [] for row, choice in enumerate(choices)]
        self.leaves = [frontier[0] if frontier else NO_NODE for frontier in self.frontiers]
        self.chains: list[list[int]] = [[] for _ in states]
        self.passes = 0

    def _first_frontier(self, row: int) -> list[int]:
        state = self.states[row]
        leaf = state.best_leaf()
        assert leaf is not None
        parents = self.growth.tree.parents[row].tolist()
        siblings = [node for node in state.open if node and parents[node] == parents[leaf]]
        return state.frontier(leaf, self.shape.sibling_share, siblings)

    def run(self) -> None:
        while any(frontier and self.passes < choice.length for frontier, choice in self._chosen()):
            self._pass()
            self.passes += 1
        for state, frontier, leaf, chain, choice in zip(
            self.states, self.frontiers, self.leaves, self.chains, self.choices, strict=True
        ):
            if choice:
                state.open |= {node: state.reached[node] for node in frontier if node != leaf}
                state.actions.append(Action(choice.name, leaf, chain))

    def _chosen(self) -> list[tuple[list[int], Choice]]:
        return [(f, choice) for f, choice in zip(self.frontiers, self.choices, strict=True) if choice]

    def _pass(self) -> None:
        rows = [
            frontier if choice and self.passes < choice.length else []
            for frontier, choice in zip(self.frontiers, self.choices, strict=True)
        ]
        width = max(map(len, rows))
        padded = [[*row, *[NO_NODE] * (width - len(row))] for row in rows]
        nodes = torch.tensor(padded, dtype=torch.int64, device=self.growth.root.device)
        offspring = self.growth.propose(nodes, self.shape.width)
        chances = self._chances(rows, offspring)
        kept = torch.tensor([[[p is not None for p in children] for children in row] for row in chances])
        refused = ~kept.to(nodes.device)
        new = self.growth.add(nodes, Offspring(offspring.tokens, offspring.log_probs.masked_fill(refused, -torch.inf)))
        self._note(rows, new.reshape(offspring.tokens.shape), chances)

    def _chances(self, rows: Sequence[list[int]], offspring: Offspring) -> list[list[list[float | None]]]:
        """Estimated probability of every candidate's path; None for those that are left out."""
        probs = offspring.log_probs.float().exp().tolist()
        return [
            self._chances_of_row(row, nodes, probs[row]) if nodes else [[None] * len(p) for p in probs[row]]
            for row, nodes in enumerate(rows)
        ]

    def _chances_of_row(self, row: int, nodes: list[int], probs: list[list[float]]) -> list[list[float | None]]:
        state, choice, shape = self.states[row], self.choices[row], self.shape
        assert choice is not None
        acceptance = state.acceptance(choice.name, self.leaves[row])
        rate = acceptance.later if self.passes else acceptance.first
        room = shape.max_nodes + 1 - state.num_nodes
        least = state.budget.ratio * shape.node_seconds if shape.prune else 0.0
        chances: list[list[float | None]] = [[None] * len(own) for own in probs]
        for rank in range(len(probs[0])):  # first children first: they continue the chains
            for place, node in enumerate(nodes):
                own = probs[place]
                share = own[rank] / own[0] if shape.ranked and rank else 1.0
                chance = state.reached[node] * rate * share
                if own[rank] > 0 and room > 0 and (rank == 0 or chance > least):
                    chances[place][rank] = chance
                    room -= 1
        return chances

    def _note(self, rows: Sequence[list[int]], new: Int[Tensor, "batch frontier width"], chances: list) -> None:
        for row, (asked, children) in enumerate(zip(rows, new.tolist(), strict=True)):
            if asked:
                self._note_row(row, len(asked), children, chances[row])

    def _note_row(self, row: int, asked: int, children: list[list[int]], chances: list) -> None:
        state, choice = self.states[row], self.choices[row]
        assert choice is not None
        frontier = []
        for place in range(asked):
            for rank, node in enumerate(children[place]):
                if node != NO_NODE:
                    chance = chances[place][rank]
                    state.add(node, chance, self.shape.node_seconds)
                    if rank == 0:
                        state.authors[node] = state.shares[choice.name]
                        frontier.append(node)
                        self.chains[row] += [node] if place == 0 else []
                    else:
                        state.open[node] = chance
        self.frontiers[row] = frontier

"""A token tree once more, with passages in it that only a cascade's drafts know of."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from backend.tree import NO_NODE, TokenTree

Child = tuple[int, int]  # parent, token


class Mirror:
    """A step's token tree once more, with passages that the algorithm's tree does not have.

    Rows are independent: `of[b]` maps nodes of the algorithm's tree to nodes here, `children[b]` finds a node by its
    parent and token, `laws[b]` keeps what was answered.
    """

    def __init__(self, tree: TokenTree) -> None:
        batch = tree.tokens.shape[0]
        self.tree = TokenTree.root(tree.tokens[:, 0])
        self.of: list[dict[int, int]] = [{0: 0} for _ in range(batch)]
        self.children: list[dict[Child, int]] = [{} for _ in range(batch)]
        self.laws: list[dict[int, Tensor]] = [{} for _ in range(batch)]

    def twins(self, tree: TokenTree, nodes: Int[Tensor, "batch some"]) -> Int[Tensor, "batch some"]:
        """The nodes' numbers here; they and their ancestors are added where they are missing."""
        tokens, parents, asked = tree.tokens.tolist(), tree.parents.tolist(), nodes.tolist()
        while missing := [self._first_missing(b, parents[b], row) for b, row in enumerate(asked)]:
            if not any(missing):
                break
            pairs = [[(self.of[b][parents[b][n]], tokens[b][n]) for n in row] for b, row in enumerate(missing)]
            self.add(pairs, nodes)
            for b, row in enumerate(missing):
                self.of[b] |= {n: self.children[b][pair] for n, pair in zip(row, pairs[b], strict=True)}
        found = [[self.of[b].get(node, NO_NODE) for node in row] for b, row in enumerate(asked)]
        return torch.tensor(found, device=nodes.device).reshape(nodes.shape)

    def _first_missing(self, row: int, parents: list[int], nodes: list[int]) -> list[int]:
        """Of the nodes and their ancestors, those that are not here although their parents are."""
        found = {}
        for node in nodes:
            while node != NO_NODE and node not in self.of[row]:
                if parents[node] in self.of[row]:
                    found[node] = None
                node = parents[node]
        return list(found)

    def add(self, pairs: Sequence[Sequence[Child]], like: Tensor) -> Int[Tensor, "batch new"]:
        """The nodes with these parents and tokens, made where there are none; padded with `NO_NODE`."""
        new = [[pair for pair in dict.fromkeys(row) if pair not in self.children[b]] for b, row in enumerate(pairs)]
        width, first = max(map(len, new)), self.tree.num_nodes
        if width:
            padded = [[*row, *[(NO_NODE, 0)] * (width - len(row))] for row in new]
            parents, tokens = torch.tensor(padded, device=like.device).unbind(2)
            self.tree = self.tree.add(parents, tokens, torch.zeros_like(tokens).float())
            for b, row in enumerate(new):
                self.children[b] |= {pair: first + place for place, pair in enumerate(row)}
        found = [[self.children[b][pair] for pair in row] for b, row in enumerate(pairs)]
        return padded_nodes(found, like)

    def unscored(self, nodes: Int[Tensor, "batch some"]) -> Int[Tensor, "batch new"]:
        """Those without a law yet, each once."""
        rows = [
            [node for node in dict.fromkeys(row) if node != NO_NODE and node not in known]
            for row, known in zip(nodes.tolist(), self.laws, strict=True)
        ]
        return padded_nodes(rows, nodes)

    def keep(self, nodes: Int[Tensor, "batch some"], laws: Float[Tensor, "batch some vocab"]) -> None:
        for b, row in enumerate(nodes.tolist()):
            self.laws[b] |= {node: laws[b, place] for place, node in enumerate(row) if node != NO_NODE}

    def laws_of(self, twins: Int[Tensor, "batch some"]) -> Float[Tensor, "batch some vocab"]:
        """What was kept; nothing is proposed at padding."""
        nothing = torch.full_like(next(law for row in self.laws for law in row.values()), -torch.inf)
        rows = zip(twins.tolist(), self.laws, strict=True)
        return torch.stack([torch.stack([known.get(node, nothing) for node in row]) for row, known in rows])


def padded_nodes(rows: Sequence[Sequence[int]], like: Tensor) -> Int[Tensor, "batch width"]:
    width = max(map(len, rows))
    padded = [[*row, *[NO_NODE] * (width - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.int64, device=like.device).reshape(len(rows), width)


def compacted(nodes: Int[Tensor, "batch some"]) -> Int[Tensor, "batch width"]:
    """Without padding between nodes, each node once."""
    return padded_nodes([[n for n in dict.fromkeys(row) if n != NO_NODE] for row in nodes.tolist()], nodes)

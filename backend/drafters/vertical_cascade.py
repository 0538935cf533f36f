"""Vertical cascade (CS-Drafting, arXiv 2312.11462; CAS-Spec, arXiv 2510.26843): a draft reviews a cheaper one."""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from backend.drafters.mirror import Mirror, compacted
from backend.drafters.registry import once_more
from backend.errors import TreebenchError
from backend.tree import NO_NODE, Accepted, TokenTree, Verified


class VerticalCascade:
    """Has the law of `top`, got in fewer forwards: `bottom` looks up to `lookahead` tokens ahead of every node asked
    about, `top` scores the node and that passage in one forward, and answers about the passage are kept for later.

    With `lenience` 1 the law is exactly the top draft's. Above 1 it takes the bottom's token for the likeliest one if
    the top draft finds it at most `lenience` times less likely than its own favourite. Passages that nobody asks about
    never reach the algorithm's tree: both drafts work on a mirror of it that has the passages, and its own numbers.
    """

    def __init__(self, name: str, top: Any, bottom: Any, lookahead: int, lenience: float) -> None:
        if lookahead < 0:
            raise TreebenchError(f"vertical_cascade.lookahead is {lookahead}; it must be at least 0")
        if lenience < 1:
            raise TreebenchError(f"vertical_cascade.lenience is {lenience:g}; it must be at least 1 (1: none)")
        self.name = name
        self.top, self.bottom = top, bottom
        self.lookahead = lookahead
        self.threshold = math.log(lenience)
        self.mirror: Mirror | None = None

    @property
    def parts(self) -> list[Any]:
        return [self.top, self.bottom]

    def again(self) -> "VerticalCascade":
        return VerticalCascade(
            self.name, once_more(self.top), once_more(self.bottom), self.lookahead, math.exp(self.threshold)
        )

    def allocate(self, batch: int, capacity: int) -> None:
        for draft in self.parts:
            draft.allocate(batch, capacity)

    def prefill(self, prompts: Int[Tensor, "batch prompt"], lengths: Int[Tensor, " batch"]) -> None:
        self.mirror = None
        for draft in self.parts:
            draft.prefill(prompts, lengths)

    def expand(self, tree: TokenTree, nodes: Int[Tensor, "batch frontier"]) -> Float[Tensor, "batch frontier vocab"]:
        self.mirror = mirror = self.mirror or Mirror(tree)
        twins = mirror.twins(tree, nodes)
        unscored = mirror.unscored(twins)
        if (unscored != NO_NODE).any():
            self._score(mirror, unscored)
        return mirror.laws_of(twins)

    def commit(self, tree: TokenTree, accepted: Accepted, verified: Verified) -> None:
        mirror = self.mirror or Mirror(tree)
        path, nodes = (mirror.twins(tree, some) for some in (accepted.path, verified.nodes))
        for draft in self.parts:
            draft.commit(mirror.tree, Accepted(path, accepted.bonus), Verified(nodes, verified.logits))
        self.mirror = None

    def _score(self, mirror: Mirror, nodes: Int[Tensor, "batch frontier"]) -> None:
        """One forward of the top draft for the nodes and what the bottom draft sees behind them."""
        wanted, frontier, passages = [nodes], nodes, {}
        for _ in range(self.lookahead):
            best = self.bottom.expand(mirror.tree, frontier).max(2)
            nothing = (best.values == -torch.inf) | (frontier == NO_NODE)
            if nothing.all():
                break
            tokens = best.indices.masked_fill(nothing, NO_NODE).tolist()
            pairs = [list(zip(*row, strict=True)) for row in zip(frontier.tolist(), tokens, strict=True)]
            passages |= {(b, parent): token for b, row in enumerate(pairs) for parent, token in row if token >= 0}
            frontier = mirror.add([[p for p in row if p[1] != NO_NODE] for row in pairs], nodes)
            wanted.append(mirror.unscored(frontier))
        every = compacted(torch.cat(wanted, 1))
        mirror.keep(every, self._lenient(self.top.expand(mirror.tree, every), every, passages))

    def _lenient(self, laws: Tensor, nodes: Tensor, passages: dict[tuple[int, int], int]) -> Tensor:
        if not self.threshold:
            return laws
        laws = laws.clone()
        for b, row in enumerate(nodes.tolist()):
            for place, node in enumerate(row):
                token = passages.get((b, node), NO_NODE)
                law = laws[b, place]
                favourite = int(law.argmax())
                if token not in (NO_NODE, favourite) and law[favourite] - law[token] <= self.threshold:
                    law[[token, favourite]] = law[[favourite, token]]
        return laws

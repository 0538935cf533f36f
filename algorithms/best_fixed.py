"""The best constant tree per batch size: EAGLE-2's tree with settings that were searched on tuning prompts."""

from collections.abc import Sequence

from algorithms.base import Drafter
from algorithms.eagle2 import Eagle2
from algorithms.registry import register
from backend.errors import TreebenchError
from backend.random import RandomStream
from backend.tree import Draft, TokenTree


@register("best_fixed")
class BestFixed(Eagle2):
    """`settings` has rows (batch size, depth, top_k, total_tokens), as `python -m runners.search_fixed` writes them;
    the row with the largest batch size up to the actual one counts. `total_tokens` 1 is plain decoding."""

    def __init__(self, drafter: Drafter, *, settings: Sequence[Sequence[int]]) -> None:
        if not settings or any(len(row) != 4 for row in settings):
            raise TreebenchError("best_fixed.settings needs rows of batch size, depth, top_k and total_tokens")
        self.settings = sorted(map(tuple, settings))
        super().__init__(drafter, depth=1, top_k=1, total_tokens=1)

    def grow(self, tree: TokenTree, random: RandomStream) -> Draft:
        batch = tree.tokens.shape[0]
        rows = [row for row in self.settings if row[0] <= batch] or self.settings[:1]
        _, self.depth, self.top_k, self.total_tokens = rows[-1]
        if self.total_tokens == 1:
            return Draft(tree, tree.tokens * 0)
        return super().grow(tree, random)

"""SpecInfer (Miao et al. 2024, sections 3 and 4): an expansion configuration, its tokens drawn with replacement."""

from collections.abc import Sequence

from algorithms.base import Drafter
from algorithms.fixed_tree import FixedTree
from algorithms.registry import register
from backend.errors import TreebenchError


@register("specinfer")
class SpecInfer(FixedTree):
    """Every node of level i gets `expansion[i]` children: the fixed tree, with the paper's ways to make children.

    `children=iid` (the paper when sampling) draws them independently, so that siblings may repeat a token: each repeat
    is one more try of multi-step sampling. `top_k` (the paper at temperature 0) takes the likeliest tokens.
    """

    def __init__(
        self,
        drafter: Drafter,
        *,
        expansion: Sequence[int],
        children: str,
        draft_temperature: float,
        draft_top_k: int | None,
        draft_top_p: float | None,
    ) -> None:
        if children == "without_replacement":
            raise TreebenchError("specinfer draws with replacement; children must be iid or top_k")
        super().__init__(
            drafter,
            widths=expansion,
            children=children,
            draft_temperature=draft_temperature,
            draft_top_k=draft_top_k,
            draft_top_p=draft_top_p,
        )

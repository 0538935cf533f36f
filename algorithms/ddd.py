"""Dynamic Depth Decoding (Brown et al. 2024, arXiv 2409.00142, section 3): EAGLE-2's tree, no deeper than it pays."""

from collections.abc import Sequence

from jaxtyping import Int
from torch import Tensor

from algorithms.base import Drafter
from algorithms.eagle2 import Eagle2
from algorithms.growth import Growth
from algorithms.registry import register
from backend.tree import NO_NODE


@register("ddd")
class DynamicDepth(Eagle2):
    """Drafting stops when the path probabilities of the frontier sum to less than `threshold`.

    The sum estimates the chance that the next level is needed (the paper compares its logarithm). It is looked at only
    after the growth passes `checks`, because each look waits for the device.
    """

    def __init__(
        self,
        drafter: Drafter,
        *,
        depth: int,
        top_k: int,
        total_tokens: int,
        threshold: float,
        checks: Sequence[int],
    ) -> None:
        self.drafter = drafter
        self.depth = depth
        self.top_k = top_k
        self.total_tokens = total_tokens
        self.threshold = threshold
        self.checks = set(checks)

    def go_on(self, growth: Growth, frontier: Int[Tensor, "batch frontier"], passes: int) -> Tensor:
        if passes not in self.checks:
            return frontier
        probs = growth.tree.path_log_probs.gather(1, frontier.clamp(min=0)).exp()
        confidence = probs.masked_fill(frontier == NO_NODE, 0).sum(1, keepdim=True)
        return frontier.masked_fill(confidence < self.threshold, NO_NODE)

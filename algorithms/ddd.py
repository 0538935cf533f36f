"""Dynamic Depth Decoding (Brown et al. 2024, arXiv 2409.00142, section 3): EAGLE-2's tree, no deeper than it pays."""

from collections.abc import Sequence

import numpy as np
import torch
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
    after the growth passes `checks`: in the paper's code each look waits for the device.
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
        confidence = np.exp(growth.reached(frontier)).sum(1)
        return frontier.masked_fill(torch.from_numpy(confidence < self.threshold)[:, None], NO_NODE)

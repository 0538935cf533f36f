"""Horizontal cascade (CS-Drafting, arXiv 2312.11462, section 3.2): cheaper drafts for later positions of a tree."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from backend.drafters.registry import once_more
from backend.errors import TreebenchError
from backend.tree import NO_NODE, Accepted, TokenTree, Verified


class HorizontalCascade:
    """The first draft answers at depths below `lengths[0]`, the next at the `lengths[1]` depths after them, and so on;
    the last one answers at all that are left, so its length is not given."""

    def __init__(self, name: str, drafts: Sequence[Any], lengths: Sequence[int]) -> None:
        if len(lengths) != len(drafts) - 1 or any(length < 1 for length in lengths):
            raise TreebenchError(
                f"horizontal_cascade.lengths is {list(lengths)}; {len(drafts)} drafts need {len(drafts) - 1} lengths "
                "of at least 1, the last draft goes on to the end"
            )
        self.name = name
        self.parts = list(drafts)
        self.lengths = list(lengths)

    def again(self) -> "HorizontalCascade":
        return HorizontalCascade(self.name, [once_more(draft) for draft in self.parts], self.lengths)

    def allocate(self, batch: int, capacity: int) -> None:
        for draft in self.parts:
            draft.allocate(batch, capacity)

    def prefill(self, prompts: Int[Tensor, "batch prompt"], lengths: Int[Tensor, " batch"]) -> None:
        for draft in self.parts:
            draft.prefill(prompts, lengths)

    def expand(self, tree: TokenTree, nodes: Int[Tensor, "batch frontier"]) -> Float[Tensor, "batch frontier vocab"]:
        """Each draft is asked once, about its own nodes."""
        depths = tree.depths.gather(1, nodes.clamp(min=0))
        whose = torch.bucketize(depths, torch.tensor(self.lengths, device=nodes.device).cumsum(0), right=True)
        answer = None
        for index, draft in enumerate(self.parts):
            own = nodes.masked_fill(whose != index, NO_NODE)
            if (own != NO_NODE).any() or (answer is None and index == len(self.parts) - 1):
                log_probs = draft.expand(tree, own)
                own_answer = (whose == index)[:, :, None]
                answer = log_probs if answer is None else torch.where(own_answer, log_probs, answer)
        assert answer is not None
        return answer

    def commit(self, tree: TokenTree, accepted: Accepted, verified: Verified) -> None:
        for draft in self.parts:
            draft.commit(tree, accepted, verified)

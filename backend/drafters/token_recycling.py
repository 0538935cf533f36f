"""Token Recycling (Luo et al. 2024, arXiv 2408.08696): what the target last thought might follow each token."""

import torch
from jaxtyping import Int
from torch import Tensor

from backend.drafters.copier import Copier
from backend.drafters.registry import register
from backend.loading import LoadedModel
from backend.targets import Target
from backend.top_k import top_k
from backend.tree import NO_NODE, Accepted, TokenTree, Verified

NO_SUCCESSOR = -1


class TokenRecycling(Copier):
    """An adjacency matrix, vocabulary x `successors`, with a row of the target's likeliest tokens after each token.

    Every verified node refreshes its token's row, rejected ones too; of nodes with the same token the last one stays.
    Successors have ranks but no probabilities: rank r is given 2^-(r + 1), which says no more than their order. Each
    sequence starts with an empty matrix of its own, so that no result depends on what was decoded beside or before it.
    """

    name = "token_recycling"

    def __init__(self, vocab_size: int, successors: int) -> None:
        super().__init__(vocab_size)
        self.successors = min(successors, vocab_size)
        self.scores = torch.arange(1, self.successors + 1) * -torch.tensor(2.0).log()
        self.matrix = torch.empty(0, vocab_size, self.successors, dtype=torch.int32)

    def allocate(self, batch: int, capacity: int) -> None:
        """Nothing: the matrix does not grow with the text."""

    def prefill(self, prompts: Int[Tensor, "batch prompt"], lengths: Int[Tensor, " batch"]) -> None:
        shape = (prompts.shape[0], self.vocab_size + 1, self.successors)  # what is not to be kept goes to the last row
        self.matrix = torch.full(shape, NO_SUCCESSOR, dtype=torch.int32, device=prompts.device)

    def _candidates(self, tree: TokenTree, nodes: Tensor) -> tuple[Tensor, Tensor]:
        tokens = tree.tokens.gather(1, nodes.clamp(min=0))
        successors = self.matrix.gather(1, tokens[:, :, None].expand(-1, -1, self.successors)).long()
        unknown = (successors == NO_SUCCESSOR) | (nodes == NO_NODE)[:, :, None]
        scores = self.scores.to(nodes.device).expand(successors.shape).masked_fill(unknown, -torch.inf)
        return scores, successors.clamp(min=0)

    def commit(self, tree: TokenTree, accepted: Accepted, verified: Verified) -> None:
        """Refresh the rows of all verified nodes' tokens. Finished rows learn too, which changes nothing any more."""
        exists = verified.nodes != NO_NODE
        tokens = tree.tokens.gather(1, verified.nodes.clamp(min=0))
        again = (tokens[:, :, None] == tokens[:, None]) & exists[:, None]
        rows = tokens.masked_fill(again.triu(1).any(2) | ~exists, self.vocab_size)
        likeliest = top_k(verified.logits[:, :, : self.vocab_size], self.successors)[1].int()
        self.matrix.scatter_(1, rows[:, :, None].expand_as(likeliest), likeliest)


@register("token_recycling")
def build(target: Target, loaded: LoadedModel, *, successors: int) -> TokenRecycling:
    return TokenRecycling(target.vocab_size, successors)

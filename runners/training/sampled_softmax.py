"""A vocabulary's softmax over its frequent tokens and a few of the others: a small draft LM spends its time there."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


class SampledSoftmax:
    """`frequent` tokens are in every draw, `sampled` of the others in each; a draw's shift keeps the sum unbiased.

    Adding log(others / sampled) to a sampled token's logit lets it stand for those left out, so that the expectation of
    the sum of exponentials is the whole vocabulary's (Jean et al. 2015, arXiv:1412.2007, section 3).
    """

    def __init__(self, frequent: Int[Tensor, " frequent"], vocab_size: int, sampled: int) -> None:
        is_other = torch.ones(vocab_size, dtype=torch.bool)
        is_other[frequent] = False
        self.frequent, self.others = frequent, torch.nonzero(is_other).flatten()
        self.sampled = min(sampled, len(self.others))

    def draw(self, generator: torch.Generator) -> tuple[Int[Tensor, " token"], Float[Tensor, " token"]]:
        """Tokens, without repetition, and what to add to their logits."""
        chosen = torch.randperm(len(self.others), generator=generator)[: self.sampled]
        tokens = torch.cat([self.frequent, self.others[chosen]])
        shift = torch.zeros(len(tokens))
        shift[len(self.frequent) :] = math.log(len(self.others) / self.sampled) if self.sampled else 0.0
        return tokens, shift

    def whole(self) -> tuple[Int[Tensor, " token"], Float[Tensor, " token"]]:
        tokens = torch.cat([self.frequent, self.others])
        return tokens, torch.zeros(len(tokens))

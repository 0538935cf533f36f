"""What drafters without a model share: they know a few candidates per node, and no law over the vocabulary."""

from abc import ABC, abstractmethod

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from backend.tree import NO_NODE, TokenTree


class Copier(ABC):
    """Proposes tokens that stood somewhere before; `_candidates` is all it has to say about a node."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    @abstractmethod
    def _candidates(
        self, tree: TokenTree, nodes: Int[Tensor, "batch new"]
    ) -> tuple[Float[Tensor, "batch new candidate"], Int[Tensor, "batch new candidate"]]:
        """Log-probabilities, in descending order, and tokens, all different; -inf where there is none."""

    def likeliest(
        self, tree: TokenTree, nodes: Int[Tensor, "batch new"], width: int
    ) -> tuple[Float[Tensor, "batch new few"], Int[Tensor, "batch new few"]]:
        log_probs, tokens = self._candidates(tree, nodes)
        return log_probs[:, :, :width], tokens[:, :, :width]

    def expand(self, tree: TokenTree, nodes: Int[Tensor, "batch new"]) -> Float[Tensor, "batch new vocab"]:
        log_probs, tokens = self._candidates(tree, nodes)
        everything = torch.full((*nodes.shape, self.vocab_size + 1), -torch.inf, device=nodes.device)
        places = tokens.masked_fill(log_probs == -torch.inf, self.vocab_size)  # none: behind the vocabulary
        return everything.scatter_(2, places, log_probs)[:, :, :-1]


def certain(
    proposed: list[list[int]], device: torch.device
) -> tuple[Float[Tensor, "batch new 1"], Int[Tensor, "batch new 1"]]:
    """Candidates of a drafter that has one token per node, or `NO_NODE` for none."""
    tokens = np.array(proposed, dtype=np.int64)[:, :, None]
    log_probs, missing = np.zeros(tokens.shape, dtype=np.float32), tokens == NO_NODE
    log_probs[missing], tokens[missing] = -np.inf, 0
    return torch.from_numpy(log_probs).to(device), torch.from_numpy(tokens).to(device)

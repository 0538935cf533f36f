"""The token tree that algorithms grow and the backend verifies."""

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NO_NODE = -1
WORD_BITS = 64


class Proposal(Enum):
    """How the children of every node of a tree came about; decides which acceptance rules are lossless."""

    DETERMINISTIC = "deterministic"
    IID = "iid"
    WITHOUT_REPLACEMENT = "without_replacement"


@dataclass(frozen=True)
class TokenTree:
    """One tree of drafted tokens per sequence of a batch.

    Node 0 is the root: the last committed token, whose keys and values are not cached yet. Parents precede their
    children. Rows may differ in size: a node that a row does not have carries parent `NO_NODE` and log-probability
    -inf, and is nobody's ancestor. The order in which siblings were added is their draw order.
    """

    tokens: Int[Tensor, "batch node"]
    parents: Int[Tensor, "batch node"]
    log_probs: Float[Tensor, "batch node"]  # drafter's log-probability of the token after its parent, fp32
    path_log_probs: Float[Tensor, "batch node"]  # summed over the path from the root, fp32
    depths: Int[Tensor, "batch node"]  # root 0
    ancestors: Int[Tensor, "batch node word"]  # ancestor-or-self set: bit j % 64 of word j // 64 stands for node j
    height: int  # no node is deeper; a bound the host knows without asking the device

    @classmethod
    def root(cls, tokens: Int[Tensor, " batch"]) -> "TokenTree":
        zeros = torch.zeros_like(tokens)[:, None]
        log_probs = zeros.float()
        return cls(tokens[:, None], zeros + NO_NODE, log_probs, log_probs, zeros, zeros[:, :, None] + 1, height=0)

    @property
    def num_nodes(self) -> int:
        return self.tokens.shape[1]

    @property
    def exists(self) -> Bool[Tensor, "batch node"]:
        exists = self.parents != NO_NODE
        exists[:, 0] = True
        return exists

    def add(
        self,
        parents: Int[Tensor, "batch new"],
        tokens: Int[Tensor, "batch new"],
        log_probs: Float[Tensor, "batch new"],
    ) -> "TokenTree":
        """Append nodes `num_nodes, num_nodes + 1, ...`; a parent of `NO_NODE` leaves that place empty in its row."""
        missing = parents == NO_NODE
        of = parents.clamp(min=0)
        log_probs = log_probs.float().masked_fill(missing, -torch.inf)
        ancestors = self._grown_ancestors(parents.shape[1])
        inherited = ancestors.gather(1, of[:, :, None].expand(-1, -1, ancestors.shape[2]))
        own = _own_bits(self.num_nodes, parents.shape[1], ancestors.shape[2], tokens.device)
        return type(self)(
            tokens=torch.cat([self.tokens, tokens], 1),
            parents=torch.cat([self.parents, parents], 1),
            log_probs=torch.cat([self.log_probs, log_probs], 1),
            path_log_probs=torch.cat([self.path_log_probs, self.path_log_probs.gather(1, of) + log_probs], 1),
            depths=torch.cat([self.depths, self.depths.gather(1, of) + 1], 1),
            ancestors=torch.cat([ancestors, (inherited | own).masked_fill(missing[:, :, None], 0)], 1),
            height=self.height + 1,
        )

    def _grown_ancestors(self, num_new: int) -> Int[Tensor, "batch node word"]:
        missing_words = -(-(self.num_nodes + num_new) // WORD_BITS) - self.ancestors.shape[2]
        return torch.nn.functional.pad(self.ancestors, (0, missing_words)) if missing_words else self.ancestors

    def is_ancestor(
        self, keys: Int[Tensor, "batch key"], queries: Int[Tensor, "batch query"]
    ) -> Bool[Tensor, "batch query key"]:
        """Whether key node j is query node i or lies on its path to the root; false where either is `NO_NODE`."""
        words = self.ancestors.gather(1, queries.clamp(min=0)[:, :, None].expand(-1, -1, self.ancestors.shape[2]))
        word = (keys.clamp(min=0) // WORD_BITS)[:, None, :].expand(-1, queries.shape[1], -1)
        bits = (words.gather(2, word) >> (keys.clamp(min=0) % WORD_BITS)[:, None, :]) & 1
        return bits.bool() & (keys != NO_NODE)[:, None, :] & (queries != NO_NODE)[:, :, None]


@lru_cache(maxsize=1024)
def _own_bits(start: int, num_new: int, num_words: int, device: torch.device) -> Int[Tensor, "new word"]:
    node = torch.arange(start, start + num_new, device=device)
    bits = torch.zeros(num_new, num_words, dtype=torch.int64, device=device)
    return bits.scatter_(1, (node // WORD_BITS)[:, None], (torch.ones_like(node) << (node % WORD_BITS))[:, None])


class Draft(NamedTuple):
    """A tree and the nodes of it to verify.

    `nodes` keeps the numbering of the drafted tree: choosing never renumbers, so that drafter caches stay valid. Each
    row is ascending, starts with the root, is closed under parents and is padded at its end with `NO_NODE`. `laws` are
    the laws (probabilities, fp32) that the children of `nodes[:, i]` were drawn from; None if deterministic.
    """

    tree: TokenTree
    nodes: Int[Tensor, "batch width"]
    proposal: Proposal = Proposal.DETERMINISTIC
    laws: Float[Tensor, "batch width vocab"] | None = None

    @property
    def exists(self) -> Bool[Tensor, "batch width"]:
        return self.nodes != NO_NODE

    def of_nodes(self, values: Tensor) -> Tensor:
        """Per-node values of the tree, (batch, node), in the order of `nodes`; padding repeats the root's."""
        return values.gather(1, self.nodes.clamp(min=0))

    def parent_places(self) -> Int[Tensor, "batch width"]:
        """The place in `nodes` of each node's parent; `NO_NODE` at the root and at padding."""
        parents = self.of_nodes(self.tree.parents)
        ascending = self.nodes.masked_fill(~self.exists, self.tree.num_nodes)
        places = torch.searchsorted(ascending, parents.clamp(min=0))
        return places.masked_fill((parents == NO_NODE) | ~self.exists, NO_NODE)


class Verified(NamedTuple):
    """What the target computed for the nodes of one step, in their order; drafters may learn from it."""

    nodes: Int[Tensor, "batch width"]
    logits: Float[Tensor, "batch width vocab"]


class Accepted(NamedTuple):
    """What one verification step commits.

    `path` names accepted nodes of the drafted tree, root first, padded with `NO_NODE` (a finished row is all padding);
    `bonus` is the target's own next token and the next root. The step emits `path[:, 1:]`'s tokens, then `bonus`.
    """

    path: Int[Tensor, "batch accepted"]
    bonus: Int[Tensor, " batch"]

    @property
    def num_nodes(self) -> Int[Tensor, " batch"]:
        return (self.path != NO_NODE).sum(1)

    def emitted(self, tree: TokenTree) -> Int[Tensor, "batch accepted"]:
        """Tokens emitted per row, bonus last, padded with `NO_NODE`."""
        count = self.num_nodes[:, None]
        after_root = tree.tokens.gather(1, self.path.clamp(min=0)).roll(-1, 1)
        place = torch.arange(self.path.shape[1], device=self.path.device)
        emitted = torch.where(place == count - 1, self.bonus[:, None], after_root)
        return emitted.masked_fill(place >= count, NO_NODE)

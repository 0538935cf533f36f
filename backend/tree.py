"""The token tree that algorithms grow and the backend verifies."""

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from backend.arrays import on_host
from backend.fields import NO_NODE, WORD_BITS, Fields, append, with_room


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
        return cls(tokens[:, None], *_root_fields(tokens.shape[0], tokens.device), height=0)

    def on(self, device: torch.device) -> "TokenTree":
        """A copy on another device."""
        return TokenTree(*(getattr(self, name).to(device) for name in Fields._fields), height=self.height)

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
        """Append nodes `num_nodes, num_nodes + 1, ...`.

        A parent of `NO_NODE` or a log-probability of -inf leaves that place empty in its row.
        """
        builder = TreeBuilder(self)
        builder.add(*(on_host(values) for values in (parents, tokens, log_probs.float())))
        return builder.tree

    def is_ancestor(
        self, keys: Int[Tensor, "batch key"], queries: Int[Tensor, "batch query"]
    ) -> Bool[Tensor, "batch query key"]:
        """Whether key node j is query node i or lies on its path to the root; false where either is `NO_NODE`."""
        words = self.ancestors.gather(1, queries.clamp(min=0)[:, :, None].expand(-1, -1, self.ancestors.shape[2]))
        word = (keys.clamp(min=0) // WORD_BITS)[:, None, :].expand(-1, queries.shape[1], -1)
        bits = (words.gather(2, word) >> (keys.clamp(min=0) % WORD_BITS)[:, None, :]) & 1
        return bits.bool() & (keys != NO_NODE)[:, None, :] & (queries != NO_NODE)[:, :, None]


@lru_cache(maxsize=64)
def _root_fields(batch: int, device: torch.device) -> tuple[Tensor, ...]:
    zeros = torch.zeros(batch, 1, dtype=torch.int64, device=device)
    log_probs = zeros.float()
    return zeros + NO_NODE, log_probs, log_probs, zeros, zeros[:, :, None] + 1


class TreeBuilder:
    """A tree in the making, in arrays on the host: a tree is many tiny steps, which cost least there.

    Nodes are appended behind those that are there, and what is there never changes, so the trees handed out share
    `fields`. `NO_NODE` as an index finds the last place, which no node takes: nothing leads there (-inf). Reading a
    tree from a device to start from waits for that device.
    """

    def __init__(self, tree: TokenTree) -> None:
        self.device = tree.tokens.device
        self.num_nodes, self.height = tree.num_nodes, tree.height
        self._tree: TokenTree | None = tree
        self.fields = Fields(*(on_host(getattr(tree, name)) for name in Fields._fields))
        self._reserve()
        self.has_gaps = self.num_nodes > 1 and not self.exists.all()  # whether a row lacks a node that another one has

    @property
    def exists(self) -> Bool[np.ndarray, "batch node"]:
        exists = self.fields.parents[:, : self.num_nodes] != NO_NODE
        exists[:, 0] = True
        return exists

    def add(
        self,
        new_parents: Int[np.ndarray, "batch new"],
        new_tokens: Int[np.ndarray, "batch new"],
        new_log_probs: Float[np.ndarray, "batch new"],
    ) -> Int[np.ndarray, "batch new"]:
        """As `TokenTree.add`; returns the new nodes, `NO_NODE` where a place is left empty."""
        start, self.num_nodes = self.num_nodes, self.num_nodes + new_parents.shape[1]
        self._reserve()
        self.height += 1
        self._tree = None
        nodes = np.empty_like(new_parents)
        self.has_gaps |= append(self.fields, start, new_parents, new_tokens, new_log_probs, nodes)
        return nodes

    @property
    def tree(self) -> TokenTree:
        """What has been added so far, on the device."""
        if self._tree is None:
            size, words = self.num_nodes, -(-self.num_nodes // WORD_BITS)
            *flat, ancestors = self.fields
            known = (*[values[:, :size] for values in flat], ancestors[:, :size, :words])
            tree = TokenTree(*map(torch.from_numpy, known), height=self.height)
            self._tree = tree if self.device.type == "cpu" else tree.on(self.device)
        return self._tree

    def _reserve(self) -> None:
        """Room for the nodes and one place more. It grows in large steps: each copies everything."""
        if self.fields[0].shape[1] > self.num_nodes:
            return
        room = 4 * WORD_BITS
        while room <= self.num_nodes:
            room *= 4
        self.fields = Fields(*with_room(self.fields, room))


class Draft(NamedTuple):
    """A tree and the nodes of it to verify.

    `nodes` keeps the numbering of the drafted tree: choosing never renumbers, so that drafter caches stay valid. Each
    row is ascending, starts with the root, is closed under parents and is padded at its end with `NO_NODE`. `laws` are
    the laws (probabilities, fp32) that children were drawn from; None if deterministic. `law_places[:, i]` says which
    of them belongs to the children of `nodes[:, i]`, `NO_NODE` where nothing was drawn; None: they are in order.
    """

    tree: TokenTree
    nodes: Int[Tensor, "batch width"]
    proposal: Proposal = Proposal.DETERMINISTIC
    laws: Float[Tensor, "batch law vocab"] | None = None
    law_places: Int[Tensor, "batch width"] | None = None

    def laws_at(self, rows: Int[Tensor, " row"], places: Int[Tensor, " row"]) -> Float[Tensor, "row vocab"]:
        """What the children of one node of each row were drawn from; any law where nothing was drawn."""
        assert self.laws is not None
        return self.laws[rows, places if self.law_places is None else self.law_places[rows, places]]

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

    def emitted(self, tree: TokenTree) -> list[list[int]]:
        """Tokens emitted per row, bonus last; one wait for the device."""
        width = self.path.shape[1]
        tokens = tree.tokens.gather(1, self.path.clamp(min=0))
        rows = torch.cat([self.path, tokens, self.bonus[:, None]], 1).tolist()
        counts = [width - row[:width].count(NO_NODE) for row in rows]
        pairs = zip(rows, counts, strict=True)
        return [[*row[width + 1 : width + count], row[-1]] if count else [] for row, count in pairs]

"""A target and a drafter that are laws, not models: acceptance is pinned by depth and rank, and forwards are free.

For scales that no machine here has: a tree policy meets a drafter of known quality in seconds, at any batch size. Time
is then a cost model's, and every record says so.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import gammaincinv
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from backend.errors import TreebenchError
from backend.tree import NO_NODE, Accepted, TokenTree, Verified

VOCABULARY = 256
Hashes = NDArray[np.uint64]
_ODD = np.uint64(0x9E3779B97F4A7C15)


def mixed(values: Hashes, salt: int) -> Hashes:
    """SplitMix64's finaliser: equal contexts give equal numbers, near ones unrelated numbers."""
    with np.errstate(over="ignore"):
        x = values + _ODD * np.uint64(salt + 1)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def uniforms(values: Hashes, salt: int) -> Float[NDArray[Any], "..."]:
    """In (0, 1)."""
    return ((mixed(values, salt) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


class Law:
    """`acceptance[d][r]` is the chance that the drafter's rank-r token at depth d + 1 is the target's own.

    Depth counts from the root of the step; the last row holds for all deeper ones. In one context the chances are a
    Dirichlet draw around that row, the more even the larger `concentration`, and the drafter states them: it is
    calibrated, and it knows easy contexts from hard ones, which is what dynamic trees live on.
    """

    def __init__(self, acceptance: Sequence[Sequence[float]], concentration: float, seed: int) -> None:
        ranks = max((len(row) for row in acceptance), default=0)
        if not ranks or ranks > VOCABULARY - 2 or any(min(row, default=0) < 0 or sum(row) > 1 for row in acceptance):
            raise TreebenchError(
                "target.law.acceptance needs a list of probabilities per depth, each with a sum of at most 1, of at "
                f"most {VOCABULARY - 2} ranks"
            )
        self.acceptance = np.zeros((len(acceptance), ranks + 1))  # the last place: none of the ranks
        for row, chances in zip(self.acceptance, acceptance, strict=True):
            row[: len(chances)], row[-1] = chances, 1 - sum(chances)
        self.concentration, self.salt = concentration, 7919 * seed

    def next_token(self, contexts: Hashes) -> NDArray[np.int64]:
        """The target's choice."""
        return (mixed(contexts, self.salt + 1) % np.uint64(VOCABULARY)).astype(np.int64)

    def chances(self, contexts: Hashes, depths: NDArray[np.int64]) -> Float[NDArray[Any], "node rank"]:
        """Of the ranks in one context, in the drafter's order: not sorted."""
        mean = self.acceptance[np.minimum(depths, len(self.acceptance) - 1)]
        draws = np.stack([uniforms(contexts, self.salt + 10 + rank) for rank in range(mean.shape[1])], -1)
        weights = np.where(mean > 0, gammaincinv(np.maximum(mean * self.concentration, 1e-9), draws), 0.0)
        weights = np.maximum(weights, np.where(mean > 0, 1e-12, 0.0))
        return weights / weights.sum(-1, keepdims=True)

    def log_probs(self, contexts: Hashes, depths: NDArray[np.int64]) -> Float[NDArray[Any], "node vocab"]:
        """The drafter's law: the target's token sits at a rank drawn from the chances, other tokens fill the rest."""
        chances = self.chances(contexts, depths)
        place = (chances.cumsum(-1) < uniforms(contexts, self.salt + 2)[:, None]).sum(-1)
        num_ranks = chances.shape[1] - 1
        ranks = np.arange(num_ranks)
        others = 1 + ranks - (ranks > place[:, None])  # distinct, and never the target's token
        tokens = (self.next_token(contexts)[:, None] + np.where(ranks == place[:, None], 0, others)) % VOCABULARY
        found = np.full((len(contexts), VOCABULARY), -np.inf)
        with np.errstate(divide="ignore"):
            np.put_along_axis(found, tokens, np.log(chances[:, :-1]), 1)
        return found


def law_of(options: Mapping[str, Any]) -> Law:
    """From `target.law`: `acceptance`, or a published acceptance length `tau` that the rates are fitted to."""
    names = ("acceptance", "tau", "tau_tree", "concentration", "seed")
    if wrong := sorted(set(names) ^ set(options)):
        raise TreebenchError(f"target.law takes {', '.join(names)}: check {wrong[0]!r}")
    if (options["acceptance"] is None) == (options["tau"] is None):
        raise TreebenchError("target.law needs either acceptance or tau; set the other one to null")
    acceptance = options["acceptance"] or fitted(options["tau"], options["tau_tree"])
    return Law(acceptance, options["concentration"], options["seed"])


def fitted(tau: float, widths: Sequence[int], ranks: int = 10) -> list[list[float]]:
    """Rates p (1 - p)^r at which a tree of these widths yields `tau` tokens per step, bonus included."""

    def length(p: float) -> float:
        reached, total = 1.0, 1.0
        for width in widths:
            reached *= sum(p * (1 - p) ** rank for rank in range(width))
            total += reached
        return total

    if not 1 < tau < length(0.999):
        raise TreebenchError(f"target.law.tau is {tau}; the tree {list(widths)} yields between 1 and {len(widths) + 1}")
    p = float(brentq(lambda p: length(p) - tau, 1e-6, 0.999))  # type: ignore[arg-type]
    return [[p * (1 - p) ** rank for rank in range(ranks)]]


class _Contexts:
    """Hashes of each row's committed text, and of the paths below it."""

    def __init__(self) -> None:
        self.committed: Hashes = np.zeros(0, dtype=np.uint64)

    def prefill(self, prompts: Int[Tensor, "batch prompt"], lengths: Int[Tensor, " batch"]) -> None:
        self.committed = np.zeros(len(lengths), dtype=np.uint64)
        for row, (tokens, length) in enumerate(zip(prompts.tolist(), lengths.tolist(), strict=True)):
            for token in tokens[:length]:
                self.committed[row] = _extended(self.committed[row : row + 1], np.array([token]))[0]

    def of_nodes(self, tree: TokenTree, nodes: Tensor) -> Hashes:
        """Of the text that ends in each node, (batch, node); padding repeats the root."""
        tokens, parents = tree.tokens.cpu().numpy(), tree.parents.cpu().numpy()
        found = np.zeros(tokens.shape, dtype=np.uint64)
        found[:, 0] = _extended(self.committed, tokens[:, 0])
        depths = tree.depths.cpu().numpy()
        rows = np.arange(len(tokens))[:, None]
        for depth in range(1, tree.height + 1):
            at = (depths == depth) & (parents != NO_NODE)
            above = found[rows, np.maximum(parents, 0)]
            found = np.where(at, _extended(above, tokens), found)
        return np.take_along_axis(found, np.maximum(nodes.cpu().numpy(), 0), 1)

    def commit(self, tree: TokenTree, accepted: Accepted) -> None:
        last = (accepted.num_nodes - 1).clamp(min=0)[:, None]
        leaf = accepted.path.gather(1, last).clamp(min=0)
        moved = (accepted.num_nodes > 0).cpu().numpy()
        self.committed = np.where(moved, self.of_nodes(tree, leaf)[:, 0], self.committed)


def _extended(contexts: Hashes, tokens: NDArray[Any]) -> Hashes:
    return mixed(contexts ^ (tokens.astype(np.uint64) + np.uint64(1)), 1)


class SyntheticTarget(_Contexts):
    """Answers like a TreeModel that is certain of its next token. Greedy only: a temperature changes nothing."""

    device = torch.device("cpu")
    max_context = 1 << 30
    vocab_size = VOCABULARY

    def __init__(self, law: Law) -> None:
        super().__init__()
        self.law = law

    def allocate(self, batch: int, capacity: int) -> None:
        """Nothing: there is no cache."""

    def expand(self, tree: TokenTree, nodes: Int[Tensor, "batch new"]) -> Float[Tensor, "batch new vocab"]:
        return self._logits(self.of_nodes(tree, nodes))

    def score_text(self, tokens: Int[Tensor, "batch text"], last: int) -> Float[Tensor, "batch last vocab"]:
        contexts, found = np.zeros(len(tokens), dtype=np.uint64), []
        for column in tokens.T.cpu().numpy():
            contexts = _extended(contexts, column)
            found.append(contexts)
        return self._logits(np.stack(found[-last:], 1))

    def _logits(self, contexts: Hashes) -> Tensor:
        tokens = torch.from_numpy(self.law.next_token(contexts.reshape(-1)).reshape(contexts.shape))
        return torch.zeros(*tokens.shape, self.vocab_size).scatter_(2, tokens[:, :, None], 30.0)

    def settle(self) -> None:
        """Nothing to read back."""


class SyntheticDrafter(_Contexts):
    """Proposes what the law says."""

    name = "synthetic"

    def __init__(self, law: Law) -> None:
        super().__init__()
        self.law = law

    def allocate(self, batch: int, capacity: int) -> None:
        """Nothing: there is no cache."""

    def expand(self, tree: TokenTree, nodes: Int[Tensor, "batch new"]) -> Float[Tensor, "batch new vocab"]:
        contexts = self.of_nodes(tree, nodes)
        depths = np.take_along_axis(tree.depths.cpu().numpy(), np.maximum(nodes.cpu().numpy(), 0), 1)
        found = self.law.log_probs(contexts.reshape(-1), depths.reshape(-1)).reshape(*contexts.shape, -1)
        return torch.from_numpy(found).float().masked_fill((nodes == NO_NODE)[:, :, None], -torch.inf)

    def commit(self, tree: TokenTree, accepted: Accepted, verified: Verified | None = None) -> None:
        super().commit(tree, accepted)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One id per byte: a law needs contexts, not words."""
    alphabet = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)  # type: ignore[assignment]
    tokenizer.decoder = ByteLevelDecoder()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)

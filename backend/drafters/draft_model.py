"""A causal LM as a drafter: a TreeModel that brings its own cache up to date."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from backend.kv_cache import LayerShape
from backend.model import TreeModel
from backend.ops import Ops
from backend.plan import place_of, tree_plan
from backend.tree import NO_NODE, Accepted, TokenTree, Verified


class DraftModel(TreeModel):
    """Any causal LM with the target's tokenizer; verified tokens it has not seen are caught up by itself.

    Committed tokens that it never expanded (the accepted leaf; whatever another drafter proposed) are owed: they ride
    in front of the next expansion, in the same forward. So do ancestors in the tree that it has not seen.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        vocab_size: int,
        shapes: dict[int, LayerShape] | None = None,
        ops: Ops | None = None,
    ) -> None:
        super().__init__(model, shapes, ops)
        self.name = name
        self.target_vocab_size = vocab_size
        self.owed_tokens = torch.empty(0, 0, dtype=torch.int64)
        self.owed = torch.empty(0, dtype=torch.int64)
        self.has_committed = False  # since the last expansion: how much is owed is known on the device only

    def again(self) -> "DraftModel":
        """The same draft a second time: the weights are shared, the cache is not."""
        return DraftModel(self.name, self.model, self.target_vocab_size, self.shapes, self.ops)

    def prefill(self, prompts: Int[Tensor, "batch prompt"], lengths: Int[Tensor, " batch"]) -> None:
        super().prefill(prompts, lengths)
        self.owed_tokens = prompts.new_empty(prompts.shape[0], 0)
        self.owed = torch.zeros_like(lengths)
        self.has_committed = False

    def expand(self, tree: TokenTree, nodes: Int[Tensor, "batch new"]) -> Float[Tensor, "batch new vocab"]:
        cache = self._cache()
        self._read_owed()
        wanted = self._with_unseen_ancestors(tree, nodes)
        padded = self._padded(wanted)
        num_owed = self.owed_tokens.shape[1]
        owed = self.owed if num_owed else None
        plan = tree_plan(tree, padded, self.entries, cache.lengths, cache.longest, owed, num_owed)
        tokens = torch.cat([self.owed_tokens, tree.tokens.gather(1, padded.clamp(min=0))], 1)
        logits = self._score(tokens, plan)[:, wanted.shape[1] - nodes.shape[1] : wanted.shape[1]]
        if owed is not None:
            cache.extend(owed)
            self.owed_tokens, self.owed = self.owed_tokens[:, :0], torch.zeros_like(owed)
        return fit_vocabulary(logits.float(), self.target_vocab_size).log_softmax(2)

    def commit(self, tree: TokenTree, accepted: Accepted, verified: Verified | None = None) -> None:
        """Keep the cached prefix of the accepted path; owe the rest of it. Waits for nothing; the next step does."""
        places = place_of(accepted.path, self.entries)
        cached = (places != NO_NODE).sum(1)
        if self.entries.shape[1]:
            self._cache().keep(places, self.ops)
        self._owe(tree.tokens.gather(1, accepted.path.clamp(min=0)), cached, accepted.num_nodes)
        self.entries = self.entries[:, :0]
        self.has_committed = True

    def _read_owed(self) -> None:
        """Bring lengths to the host where the device is idle: at the start of a step, not between its kernels."""
        if self.has_committed:
            self._cache().settle()
            self.owed_tokens = self.owed_tokens[:, : int(self.owed.max())]
            self.has_committed = False

    def _owe(self, tokens: Tensor, start: Tensor, stop: Tensor) -> None:
        """Append tokens[b, start[b]:stop[b]] to what row b owes."""
        order = torch.arange(tokens.shape[1], device=tokens.device)
        wanted = (order >= start[:, None]) & (order < stop[:, None])
        space = F.pad(self.owed_tokens, (0, tokens.shape[1] + 1))
        unwanted = space.shape[1] - 1
        target = torch.where(wanted, self.owed[:, None] + order - start[:, None], unwanted)
        space.scatter_(1, target, tokens)
        self.owed = self.owed + (stop - start).clamp(min=0)
        self.owed_tokens = space[:, :unwanted]

    def _with_unseen_ancestors(self, tree: TokenTree, nodes: Tensor) -> Tensor:
        """The nodes, preceded by those of their ancestors that are in neither the cache nor the request."""
        known = torch.zeros(nodes.shape[0], tree.num_nodes + 1, dtype=torch.bool, device=nodes.device)
        known.scatter_(1, self.entries.masked_fill(self.entries == NO_NODE, tree.num_nodes), True)
        wanted = nodes.masked_fill(nodes == NO_NODE, tree.num_nodes)
        if known[:, :-1].gather(1, nodes.clamp(min=0)).logical_and(nodes != NO_NODE).any():
            raise ValueError("a node was expanded twice in one step")
        known.scatter_(1, wanted, True)
        parents = tree.parents.gather(1, nodes.clamp(min=0))
        if known.gather(1, parents.clamp(min=0)).logical_or((parents == NO_NODE) | (nodes == NO_NODE)).all():
            return nodes
        every = torch.arange(tree.num_nodes, device=nodes.device).expand(nodes.shape[0], -1)
        unseen = tree.is_ancestor(every, nodes).any(1) & ~known[:, :-1]
        order = every.masked_fill(~unseen, tree.num_nodes).sort(1).values[:, : int(unseen.sum(1).max())]
        return torch.cat([order.masked_fill(order == tree.num_nodes, NO_NODE), nodes], 1)


def fit_vocabulary(logits: Float[Tensor, "batch node vocab"], vocab_size: int) -> Float[Tensor, "batch node target"]:
    """Padded embeddings make vocabularies of one tokenizer differ in size; only ids of the target can be proposed."""
    missing = vocab_size - logits.shape[2]
    return F.pad(logits, (0, missing), value=-torch.inf) if missing > 0 else logits[:, :, :vocab_size]

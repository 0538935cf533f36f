"""Self-drafts: views of the target (layers skipped, weights quantized) on the target's own cache."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from backend.drafters.draft_model import DraftModel
from backend.kv_cache import KVCache
from backend.model import TreeModel
from backend.tree import Accepted, TokenTree, Verified


class SelfDraft(DraftModel):
    """A drafter whose committed prefix is the target's: keys and values that the target computed.

    What it drafts lies provisionally behind that prefix and is overwritten by the verification, so it never owes a
    committed token and needs no prefill. Several self-drafts may take part in one tree: each reads the provisional
    entries that it wrote itself and passes over the others', so that its law depends on the tokens alone. A skipped
    attention block neither writes nor reads its layer's slots. Switching to a draft makes it catch up on ancestors
    that it has not seen, in the forward that asks for it.
    """

    def __init__(self, name: str, target: TreeModel, model: PreTrainedModel) -> None:
        super().__init__(name, model, target.vocab_size, target.shapes, target.ops)
        self.target = target

    def again(self) -> "SelfDraft":
        """The same draft a second time, on the same weights, with provisional entries of its own."""
        return SelfDraft(self.name, self.target, self.model)

    def _cache(self) -> KVCache:
        return self.target._cache()

    def allocate(self, batch: int, capacity: int) -> None:
        """Nothing: the target's cache is used."""

    def prefill(self, prompts: Int[Tensor, "batch prompt"], lengths: Int[Tensor, " batch"]) -> None:
        self.entries = lengths.new_empty(prompts.shape[0], 0)
        self.owed_tokens = self.entries
        self.owed = torch.zeros_like(lengths)
        self._cache().provisional.clear()

    def expand(self, tree: TokenTree, nodes: Int[Tensor, "batch new"]) -> Float[Tensor, "batch new vocab"]:
        provisional = self._cache().provisional
        self.entries = provisional.seen_by(self, self.entries[:, :0])
        known = self.entries.shape[1]
        log_probs = super().expand(tree, nodes)
        provisional.add(self, self.entries[:, known:])
        return log_probs

    def commit(self, tree: TokenTree, accepted: Accepted, verified: Verified | None = None) -> None:
        self.entries = self.entries[:, :0]
        self._cache().provisional.clear()

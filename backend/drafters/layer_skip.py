"""Self-drafting: the target with some of its layers left out, on the target's own weights and cache."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from backend.drafters.draft_model import DraftModel
from backend.drafters.registry import register
from backend.errors import TreebenchError
from backend.kv_cache import KVCache
from backend.layers import layer_list_path
from backend.loading import LoadedModel
from backend.model import TreeModel
from backend.tree import Accepted, TokenTree, Verified


class LayerSkip(DraftModel):
    """Draft & Verify / SWIFT style self-drafter (Zhang et al. 2024; Xia et al. 2025).

    Its committed prefix is the target's: keys and values that full layers computed. What it drafts lies provisionally
    behind that prefix and is overwritten by the verification, so it never owes a token and needs no prefill.
    """

    def __init__(self, name: str, target: TreeModel, skip: Sequence[int]) -> None:
        super().__init__(name, without_layers(target.model, skip), target.vocab_size, target.shapes, target.ops)
        self.target = target

    def _cache(self) -> KVCache:
        return self.target._cache()

    def allocate(self, batch: int, capacity: int) -> None:
        """Nothing: the target's cache is used."""

    def prefill(self, prompts: Tensor, lengths: Tensor) -> None:
        self.entries = lengths.new_empty(prompts.shape[0], 0)
        self.owed_tokens = self.entries
        self.owed = torch.zeros_like(lengths)

    def commit(self, tree: TokenTree, accepted: Accepted, verified: Verified | None = None) -> None:
        self.entries = self.entries[:, :0]


@register("layer_skip")
def build(target: TreeModel, loaded: LoadedModel, *, skip: Sequence[int]) -> LayerSkip:
    return LayerSkip("layer_skip", target, skip)


class SkippedLayer(nn.Module):
    """Hands the hidden states on; answers for the layer's attributes, which some models read (attention_type)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "layer", layer)  # not a submodule: it must not be traversed or moved

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "layer"), name)

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        return hidden_states


def without_layers(model: PreTrainedModel, skip: Sequence[int]) -> PreTrainedModel:
    """A view of the model that shares all weights and passes over the decoder layers in `skip`.

    Raises TreebenchError where the model keeps its layers in an unknown place or has no such layer.
    """
    path = layer_list_path(model)
    layers = model.get_submodule(path)
    assert isinstance(layers, nn.ModuleList)
    wrong = [i for i in skip if not 0 <= i < len(layers)]
    if wrong:
        raise TreebenchError(f"layer_skip: the target has layers 0 to {len(layers) - 1}, there is no layer {wrong[0]}")
    kept = nn.ModuleList(SkippedLayer(layer) if i in set(skip) else layer for i, layer in enumerate(layers))
    return _with_submodule(model, path.split("."), kept)


def _with_submodule(module: nn.Module, path: list[str], replacement: nn.Module) -> Any:
    """Shallow copies along the path, everything else shared."""
    clone = copy.copy(module)
    clone._modules = dict(module._modules)
    name, *rest = path
    child = clone._modules[name]
    assert child is not None
    clone._modules[name] = _with_submodule(child, rest, replacement) if rest else replacement
    return clone

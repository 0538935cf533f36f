"""Where a transformers model keeps its decoder layers, and what flows between them."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from backend.errors import TreebenchError

BLOCKS = {  # what the blocks of a decoder layer are called
    "attention": ("self_attn", "attn", "attention", "self_attention"),
    "mlp": ("mlp", "feed_forward", "block_sparse_moe"),
}
SUPPORTED = "supported are decoder layers in one module list, with " + " and ".join(
    f"an {block} block called {' or '.join(names)}" for block, names in BLOCKS.items()
)


def layer_list_path(model: PreTrainedModel) -> str:
    """Where the decoder layers are: the only module list as long as the model has layers."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    found = [name for name, module in lists if len(module) == model.config.num_hidden_layers]
    if len(found) != 1:
        raise TreebenchError(
            f"layers of {model.config.model_type!r} cannot be told apart: expected one list of "
            f"{model.config.num_hidden_layers} decoder layers, found {len(found)}; {SUPPORTED}"
        )
    return found[0]


def block_path(model: PreTrainedModel, layer: int, block: str) -> str:
    """Where a block of a decoder layer is."""
    path = f"{layer_list_path(model)}.{layer}"
    children = dict(model.get_submodule(path).named_children())
    found = [name for name in BLOCKS[block] if name in children]
    if len(found) != 1:
        raise TreebenchError(
            f"layers of {model.config.model_type!r} cannot be skipped block by block: layer {layer} consists of "
            f"{', '.join(children)}; {SUPPORTED}"
        )
    return f"{path}.{found[0]}"


class FeatureTap:
    """Keeps what enters the chosen decoder layers during a forward; layer L of L is what the LM head reads.

    Numbered as transformers numbers `hidden_states`. It listens only inside its `with` block, because views of the
    model (a self-drafter) share its modules.
    """

    def __init__(self, model: PreTrainedModel, layers: Sequence[int]) -> None:
        modules = model.get_submodule(layer_list_path(model))
        assert isinstance(modules, nn.ModuleList)
        wrong = [layer for layer in layers if not 0 <= layer <= len(modules)]
        if wrong:
            raise TreebenchError(f"features are asked for at layer {wrong[0]}; the model has 0 to {len(modules)}")
        self.layers = tuple(layers)
        self.states: dict[int, Tensor] = {}
        self.listening = False
        for layer in set(layers):
            if layer < len(modules):
                modules[layer].register_forward_pre_hook(self._on_input(layer), with_kwargs=True)
            else:
                model.get_decoder().register_forward_hook(self._on_output(layer))

    def _on_input(self, layer: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.listening:
                self.states[layer] = args[0] if args else kwargs["hidden_states"]

        return hook

    def _on_output(self, layer: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if self.listening:
                self.states[layer] = output[0]

        return hook

    def __enter__(self) -> None:
        self.states.clear()
        self.listening = True

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.listening = False

    def features(self, last: int, device: torch.device) -> Float[Tensor, "batch row feature"]:
        """Of the forward's `last` rows, the chosen layers side by side, all on one device."""
        return torch.cat([self.states[layer][:, -last:].to(device) for layer in self.layers], 2)

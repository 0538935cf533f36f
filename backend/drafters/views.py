"""Views of a model: other modules in some places, every weight that stays shared with the original."""

import copy
from collections.abc import Mapping
from functools import partial, update_wrapper
from types import MethodType
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from backend.errors import TreebenchError


class SkippedLayer(nn.Module):
    """Hands the hidden states on; answers for the layer's attributes, which some models read (attention_type)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "layer", layer)  # not a submodule: it must not be traversed or moved

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "layer"), name)

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        return hidden_states


class SkippedAttention(SkippedLayer):
    """Adds nothing to the residual stream, and stores no keys and values."""

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, None]:  # type: ignore[override]
        return hidden_states.new_zeros(()).expand_as(hidden_states), None


class SkippedMLP(SkippedLayer):
    """Adds nothing to the residual stream."""

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        return hidden_states.new_zeros(()).expand_as(hidden_states)


def view(model: PreTrainedModel, replacements: Mapping[str, nn.Module]) -> PreTrainedModel:
    """The model with other modules at some paths: copies along these paths only, the model itself stays as it is."""
    return _replaced(model, {tuple(path.split(".")): module for path, module in replacements.items()})


def _replaced(module: nn.Module, replacements: Mapping[tuple[str, ...], nn.Module]) -> Any:
    clone = copy.copy(module)
    clone._modules = dict(module._modules)
    _rebind(clone, module)
    below: dict[str, dict[tuple[str, ...], nn.Module]] = {}
    for (name, *rest), replacement in replacements.items():
        if rest:
            below.setdefault(name, {})[tuple(rest)] = replacement
        else:
            clone._modules[name] = replacement
    for name, inner in below.items():
        child = clone._modules[name]
        assert child is not None
        clone._modules[name] = _replaced(child, inner)
    return clone


def _rebind(clone: Any, module: nn.Module) -> None:
    """Let the copy of a module that accelerate has hooked run itself: its forward is tied to the original."""
    hooked = vars(module).get("forward")
    if hooked is None:
        return
    own: Any = vars(module).get("_old_forward")
    if not isinstance(hooked, partial) or hooked.args != (module,) or getattr(own, "__self__", None) is not module:
        raise TreebenchError(f"a part of the target ({type(module).__name__}) has a forward that a view cannot share")
    clone._old_forward = MethodType(own.__func__, clone)
    clone.forward = update_wrapper(partial(hooked.func, clone), own)

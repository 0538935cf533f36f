"""Self-drafting: the target with some of its layers left out, on the target's own weights and cache."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from backend.drafters.registry import register
from backend.drafters.self_draft import SelfDraft
from backend.drafters.views import SkippedAttention, SkippedLayer, SkippedMLP, view
from backend.errors import TreebenchError
from backend.layers import BLOCKS, block_path, layer_list_path
from backend.loading import LoadedModel
from backend.model import TreeModel

SKIPPED = {"attention": SkippedAttention, "mlp": SkippedMLP}
SkipSet = Sequence[int | str]  # 5: the whole layer; 5.attention, 5.mlp: a block; NAME.json: a set that was searched for


class LayerSkip(SelfDraft):
    """Draft & Verify / SWIFT style self-drafter (Zhang et al. 2024; Xia et al. 2025)."""

    def __init__(self, name: str, target: TreeModel, skip: SkipSet) -> None:
        super().__init__(name, target, without_layers(target.model, skip))


@register("layer_skip")
def build(target: TreeModel, loaded: LoadedModel, *, skip: SkipSet) -> LayerSkip:
    return LayerSkip("layer_skip", target, skip)


@register("early_exit")
def build_early_exit(target: TreeModel, loaded: LoadedModel, *, layers: int) -> LayerSkip:
    """The first `layers` layers, then the target's own norm and head: Kangaroo's draft without its trained adapter."""
    count = target.model.config.num_hidden_layers
    if not 0 < layers <= count:
        raise TreebenchError(f"early_exit.layers is {layers}; the target has 1 to {count} layers to leave after")
    return LayerSkip("early_exit", target, range(layers, count))


def expanded(skip: SkipSet) -> list[int | str]:
    """Files replaced by the sets in them."""
    return [item for entry in skip for item in (_read(entry) if str(entry).endswith(".json") else [entry])]


def _read(path: int | str) -> list[int | str]:
    try:
        return list(json.loads(Path(str(path)).read_text())["skip"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TreebenchError(f"layer_skip.skip: {path} is no result of runners.search_layers ({error!r})") from error


def without_layers(model: PreTrainedModel, skip: SkipSet) -> PreTrainedModel:
    """A view of the model that shares all weights and passes over the layers and blocks in `skip`.

    Raises TreebenchError where the model keeps its layers in an unknown place, has no such layer, or does more with a
    block than to add its output to the residual stream.
    """
    return view(model, skipped_modules(model, skip))


def skipped_modules(model: PreTrainedModel, skip: SkipSet) -> dict[str, nn.Module]:
    """What to put where, for `views.view`; other replacements may go with it."""
    layers = model.get_submodule(layer_list_path(model))
    assert isinstance(layers, nn.ModuleList)
    replacements: dict[str, nn.Module] = {}
    wanted = [_parsed(item, len(layers)) for item in expanded(skip)]
    for layer, block in wanted:
        path = f"{layer_list_path(model)}.{layer}" if block is None else block_path(model, layer, block)
        kind = SkippedLayer if block is None else SKIPPED[block]
        replacements[path] = kind(model.get_submodule(path))
    _check_blocks_add_up(model, sorted({layer for layer, block in wanted if block}))
    return {path: module for path, module in replacements.items() if path.rpartition(".")[0] not in replacements}


def _parsed(item: int | str, num_layers: int) -> tuple[int, str | None]:
    layer, _, block = str(item).partition(".")
    if not layer.lstrip("-").isdigit() or (block and block not in BLOCKS):
        raise TreebenchError(f"layer_skip.skip has {item!r}; it takes layers (5) and blocks ({', '.join(_examples())})")
    if not 0 <= int(layer) < num_layers:
        raise TreebenchError(f"layer_skip: the target has layers 0 to {num_layers - 1}, there is no layer {layer}")
    return int(layer), block or None


def _examples() -> list[str]:
    return [f"5.{block}" for block in BLOCKS]


@torch.inference_mode()
def _check_blocks_add_up(model: PreTrainedModel, layers: Sequence[int]) -> None:
    """With both blocks silent a layer must hand its input on; biased norms behind a block, say, would not."""
    size = model.config.get_text_config().hidden_size
    for layer in layers[:1]:
        path = f"{layer_list_path(model)}.{layer}"
        silent = {
            block_path(model, layer, b): SKIPPED[b](model.get_submodule(block_path(model, layer, b))) for b in BLOCKS
        }
        hidden = torch.linspace(-2, 3, 2 * size, dtype=model.dtype, device=model.device).view(1, 2, size)
        try:
            output = view(model, silent).get_submodule(path)(hidden)
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise _not_additive(model, " ".join(str(error).split())) from error
        output = output[0] if isinstance(output, tuple) else output
        if not torch.equal(output.to(hidden.device), hidden):
            raise _not_additive(model, "a layer does more with a block's output than to add it")


def _not_additive(model: PreTrainedModel, reason: str) -> TreebenchError:
    kind = model.config.model_type
    return TreebenchError(f"layers of {kind!r} cannot be skipped block by block ({reason}); skip whole layers instead")

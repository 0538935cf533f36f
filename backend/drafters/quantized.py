"""Quantized self-drafts: the target with 8- or 4-bit weights, with or without 8-bit activations, on its own cache.

Quantization is round to nearest, made in memory from the target's weights: int8 per output channel, int4 in groups.
Norms and embeddings stay as they are. The target keeps its weights, so that a draft adds a quarter to a half to them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from backend.drafters.layer_skip import SkipSet, skipped_modules
from backend.drafters.quantized_products import (
    Product,
    fake_product,
    int4_weight_product,
    int8_dynamic_product,
    int8_weight_product,
)
from backend.drafters.registry import register
from backend.drafters.self_draft import SelfDraft
from backend.drafters.views import view
from backend.errors import TreebenchError
from backend.fusion import SIBLINGS
from backend.layers import layer_list_path
from backend.loading import LoadedModel
from backend.model import TreeModel
from backend.placement import is_sharded

Bits = int | float
SCALE_BITS = 16  # of a group's scale, and of its zero point
Quantize = Callable[[Tensor, Tensor | None], Product]  # from a weight and a bias


@register("activation_quantized")
def build_activation_quantized(
    target: TreeModel, loaded: LoadedModel, *, head: bool, skip: SkipSet, fake_quant: bool
) -> SelfDraft:
    """W8A8: weights per channel, activations per call (the kernel) or per token (`fake_quant`)."""
    _check_device(target, fake_quant)
    quantize = (lambda w, b: fake_product(w, b, 8, None, activations=True)) if fake_quant else int8_dynamic_product
    return SelfDraft("activation_quantized", target, quantized(target.model, quantize, 8, head, skip))


@register("weight_quantized")
def build_weight_quantized(
    target: TreeModel, loaded: LoadedModel, *, bits: int, group: int, head: bool, skip: SkipSet, fake_quant: bool
) -> SelfDraft:
    """W8 (per channel) or W4 (in groups of `group` inputs), activations as they are.

    `fake_quant` rounds the weights and computes in the target's dtype: acceptance as it would be, time as it is not.
    """
    if bits not in (4, 8):
        raise TreebenchError(f"weight_quantized.bits is {bits}; it must be 4 or 8")
    if group not in (32, 64, 128, 256):
        raise TreebenchError(f"weight_quantized.group is {group}; it must be 32, 64, 128 or 256")
    _check_device(target, fake_quant)

    def quantize(weight: Tensor, bias: Tensor | None) -> Product:
        if fake_quant:
            return fake_product(weight, bias, bits, group if bits == 4 else None, activations=False)
        return int8_weight_product(weight, bias) if bits == 8 else int4_weight_product(weight, bias, group)

    stored = bits if bits == 8 else bits + 2 * SCALE_BITS / group
    return SelfDraft("weight_quantized", target, quantized(target.model, quantize, stored, head, skip))


def _check_device(target: TreeModel, fake_quant: bool) -> None:
    if is_sharded(target.model):
        raise TreebenchError("quantized drafts are made of whole matrices: leave target.parallel=tensor")
    if target.device.type != "cpu" and not fake_quant:
        raise TreebenchError(
            f"quantized drafts have kernels for the CPU only, the target is on {target.device.type}: "
            "set drafter.fake_quant=true to measure their acceptance"
        )


def quantized(model: PreTrainedModel, quantize: Quantize, bits: Bits, head: bool, skip: SkipSet) -> PreTrainedModel:
    """A view of the model whose decoder layers, and the language model head with `head`, multiply quantized weights,
    `bits` of memory each."""
    replacements = skipped_modules(model, skip)
    for group in linear_groups(model, head):
        if not any(name.startswith(f"{path}.") for name in group for path in replacements):
            replacements |= _replacements(model, group, quantize, bits)
    return view(model, replacements)


def linear_groups(model: PreTrainedModel, head: bool) -> Iterator[list[str]]:
    """Names of the linear modules to quantize, those that read one input together."""
    path = layer_list_path(model)
    names = [f"{path}.{name}" for name, m in model.get_submodule(path).named_modules() if type(m) is nn.Linear]
    if not names:
        raise TreebenchError(f"{model.config.model_type!r} has no linear modules in its layers that could be quantized")
    waiting = dict.fromkeys(names)
    for name in names:
        parent = name.rpartition(".")[0]
        for siblings in SIBLINGS:
            group = [f"{parent}.{sibling}" for sibling in siblings]
            if all(member in waiting for member in group) and _alike(model, group):
                yield group
                waiting = {other: None for other in waiting if other not in group}
        if name in waiting:
            yield [name]
            del waiting[name]
    output = model.get_output_embeddings()
    if head and type(output) is nn.Linear:
        yield [next(name for name, module in model.named_modules() if module is output)]


def _alike(model: PreTrainedModel, names: Sequence[str]) -> bool:
    return len({getattr(model.get_submodule(name), "bias", None) is None for name in names}) == 1


def _replacements(model: PreTrainedModel, names: Sequence[str], quantize: Quantize, bits: Bits) -> dict[str, nn.Module]:
    linears = [model.get_submodule(name) for name in names]
    weights, biases = [m.weight.detach() for m in linears], [m.bias for m in linears]  # type: ignore[union-attr]
    with torch.inference_mode():
        product = quantize(torch.cat(weights), None if biases[0] is None else torch.cat(biases))  # type: ignore[arg-type]
    shared = SharedProduct(product, [weight.shape[0] for weight in weights])
    stored = [StoredWeight(weight.numel(), bits) for weight in weights]
    return {name: Part(shared, index, stored[index]) for index, name in enumerate(names)}


class StoredWeight(NamedTuple):
    """How much there is of a quantized matrix."""

    numel: int
    bits: Bits  # of memory per weight, scales included


class SharedProduct:
    """One product for several linear modules that are called with the same input tensor, each once."""

    def __init__(self, product: Product, sizes: Sequence[int]) -> None:
        self.product = product
        self.sizes = list(sizes)
        self.input: Tensor | None = None
        self.waiting: dict[int, Tensor] = {}

    def output(self, index: int, hidden_states: Tensor) -> Tensor:
        if hidden_states is not self.input or index not in self.waiting:
            self.input = hidden_states
            self.waiting = dict(enumerate(self.product(hidden_states).split(self.sizes, -1)))
        result = self.waiting.pop(index)
        if not self.waiting:
            self.input = None
        return result


class Part(nn.Module):
    """What stands in a quantized linear module's place."""

    def __init__(self, shared: SharedProduct, index: int, stored: StoredWeight) -> None:
        super().__init__()
        self.stored = stored
        self.shared = shared
        self.index = index

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.shared.output(self.index, hidden_states)

"""Products with quantized weights: the CPU kernels that torch has, and a round trip that only measures the error."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from backend.errors import TreebenchError

Product = Callable[[Tensor], Tensor]
INT4_ZERO = 8  # the kernel's code for its zero point
INT4_ROWS = 16  # the kernel wants a multiple of
INT4_INNER_TILES = 1  # asked for by the kernel, without a meaning on a CPU


class Quantized(NamedTuple):
    """Codes and what they stand for: (code - zero) x scale. Per output channel, or per group of inputs."""

    codes: Int[Tensor, "out in"]
    scales: Float[Tensor, "out group"]
    zeros: Float[Tensor, "out group"]

    def restored(self) -> Float[Tensor, "out in"]:
        grouped = self.codes.float().unflatten(1, (self.scales.shape[1], -1))
        return ((grouped - self.zeros[:, :, None]) * self.scales[:, :, None]).flatten(1)


def quantize_symmetric(weight: Float[Tensor, "out in"]) -> Quantized:
    """int8 per row, round to nearest."""
    scales = (weight.float().abs().amax(1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    codes = (weight.float() / scales).round().clamp(-127, 127).to(torch.int8)
    return Quantized(codes, scales, torch.zeros_like(scales))


def quantize_in_groups(weight: Float[Tensor, "out in"], bits: int, group: int) -> Quantized:
    """Unsigned codes between the smallest and the largest value of each group, round to nearest."""
    if weight.shape[1] % group:
        raise TreebenchError(f"groups of {group} do not divide a weight with {weight.shape[1]} inputs; lower the group")
    grouped, top = weight.float().unflatten(1, (-1, group)), 2**bits - 1
    low, high = grouped.amin(2), grouped.amax(2)
    scales = ((high - low) / top).clamp(min=1e-9)
    codes = ((grouped - low[:, :, None]) / scales[:, :, None]).round().clamp(0, top)
    return Quantized(codes.flatten(1).to(torch.int32), scales, -low / scales)


def fake_product(weight: Tensor, bias: Tensor | None, bits: int, group: int | None, activations: bool) -> Product:
    """In the weight's own dtype with values that were quantized; with `activations`, int8 inputs per token too."""
    codes = quantize_symmetric(weight) if group is None else quantize_in_groups(weight, bits, group)
    restored = codes.restored().to(weight.dtype)

    def product(inputs: Tensor) -> Tensor:
        return F.linear(round_trip(inputs) if activations else inputs, restored, bias)

    return product


def round_trip(inputs: Float[Tensor, "*token size"]) -> Float[Tensor, "*token size"]:
    """int8 per token and back."""
    scales = (inputs.float().abs().amax(-1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return ((inputs.float() / scales).round() * scales).to(inputs.dtype)


def int8_dynamic_product(weight: Tensor, bias: Tensor | None) -> Product:
    """W8A8: torch's dynamic linear kernel. One scale serves all tokens of a call, so that a token's logits depend, by
    a rounding, on what is asked about with it; a draft may."""
    scales = quantize_symmetric(weight).scales[:, 0].double()
    zeros = torch.zeros_like(scales, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deprecated", category=UserWarning)  # there is no other way yet
        codes = torch.quantize_per_channel(weight.float(), scales, zeros, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(codes, None if bias is None else bias.float())
    reduce_range = not torch.cpu._is_vnni_supported()  # sums of two products overflow 16 bits there

    def product(inputs: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic(inputs.float(), packed, reduce_range).to(inputs.dtype)

    return product


def int8_weight_product(weight: Tensor, bias: Tensor | None) -> Product:
    """W8: int8 weights, activations in the weight's dtype."""
    codes, scales, _ = quantize_symmetric(weight)
    scales = scales[:, 0].to(weight.dtype)
    return _flat(lambda inputs: torch.ops.aten._weight_int8pack_mm(inputs, codes, scales), bias)


def int4_weight_product(weight: Tensor, bias: Tensor | None, group: int) -> Product:
    """W4: int4 weights in groups, computed in bf16 whatever comes in: torch's kernel for fp32 is not vectorised (28
    times slower for one row, slower than the product it replaces)."""
    num_outputs = weight.shape[0]
    quantized = quantize_in_groups(F.pad(weight, (0, 0, 0, -num_outputs % INT4_ROWS)), 4, group)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(quantized.codes, INT4_INNER_TILES)
    offsets = (INT4_ZERO - quantized.zeros) * quantized.scales
    scales = torch.stack([quantized.scales, offsets], 2).transpose(0, 1).contiguous().bfloat16()

    def product(inputs: Tensor) -> Tensor:
        output = torch.ops.aten._weight_int4pack_mm_for_cpu(inputs.bfloat16(), packed, group, scales)
        return output[:, :num_outputs].to(inputs.dtype)

    return _flat(product, bias)


def _flat(product: Product, bias: Tensor | None) -> Product:
    """These kernels take matrices only and know no bias."""

    def wrapped(inputs: Tensor) -> Tensor:
        output = product(inputs.flatten(0, -2)).unflatten(0, inputs.shape[:-1])
        return output if bias is None else output + bias

    return wrapped

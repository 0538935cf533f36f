"""Weight matrices in oneDNN's own layout: without it, a bf16 product on a CPU lays the matrix out anew at every call.

That is what made a few rows cost a third to a half more than one: the forwards of tree verification have a few rows.
"""

import os
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEWEST, MOST = 2, 255  # rows; one row is faster with torch's own product, many hide what the layout costs
SLOW, NEXT_FAST = range(17, 33), 33  # oneDNN takes half as long again for these many rows as for the next more
SHARE_OF_MEMORY = 0.25  # of the machine's that a model's weights may take if they are to be held twice
PLAIN = (nn.Parameter, Tensor)  # not what tensor parallelism makes of them


def may_pack(model: nn.Module) -> bool:
    """Whether there is a kernel for the weights, and memory for a second copy of them."""
    weights = list(model.parameters())
    if not weights or not _has_kernel() or any(not weight.is_cpu for weight in weights):
        return False
    needed = sum(weight.nbytes for weight in weights if weight.dtype == torch.bfloat16)
    return 0 < needed <= SHARE_OF_MEMORY * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@cache
def _has_kernel() -> bool:
    has_operations = all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
    return torch.backends.mkldnn.is_available() and has_operations and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def pack(linear: nn.Linear) -> None:
    """From now on the module keeps its weight in both layouts. It looks it up at every call, as a copy of it does."""
    linear.forward = partial(_forward, linear._parameters, PackedWeight())  # type: ignore[method-assign]


def _forward(parameters: dict[str, nn.Parameter | None], packed: "PackedWeight", inputs: Tensor) -> Tensor:
    weight = parameters["weight"]
    assert weight is not None
    return packed.product(inputs, weight, parameters["bias"])


class PackedWeight:
    """A second copy of one weight matrix, made at the first product that can use it and again when the weight changes.

    Copies of a module pack for themselves.
    """

    def __init__(self) -> None:
        self.layout: Tensor | None = None
        self.made_of: tuple[int, int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"layout": None, "made_of": None}

    def product(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """As `F.linear`, to rounding."""
        rows = inputs.numel() // inputs.shape[-1]
        fits = FEWEST <= rows <= MOST and weight.dtype == torch.bfloat16 and not torch.is_grad_enabled()
        if not fits or type(weight) not in PLAIN or weight.is_inference():  # the last does not tell of writes to it
            return F.linear(inputs, weight, bias)
        made_of = (weight.data_ptr(), weight._version)
        if made_of != self.made_of:
            self.layout, self.made_of = torch.ops.mkldnn._reorder_linear_weight.default(weight.detach(), None), made_of
        if rows not in SLOW:
            return _multiply(inputs, self.layout, bias)
        more = F.pad(inputs.reshape(rows, -1), (0, 0, 0, NEXT_FAST - rows))
        return _multiply(more, self.layout, bias)[:rows].view(*inputs.shape[:-1], -1)


def _multiply(inputs: Tensor, layout: Tensor | None, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(inputs, layout, bias, "none", [], "")

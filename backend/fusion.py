"""Makes a transformers model's modules cheaper to call without touching its code: at one token, calls cost most.

Weights stay where they are named; every replacement computes what the module computed, to rounding.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from backend.packing import PackedWeight, may_pack, pack

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # linears that read one input


def fuse(model: nn.Module) -> None:
    """Fuse RMS norms and sibling projections and pack weights, once; modules that look different are left alone."""
    packs = may_pack(model)
    for module in list(model.modules()):
        if _is_plain_rms_norm(module):
            module.forward = _fused_norm(module)  # type: ignore[method-assign]
        for names in SIBLINGS:
            linears = [getattr(module, name, None) for name in names]
            if all(map(_is_plain_linear, linears)):
                _share_input(linears, packs)  # type: ignore[arg-type]
        if packs and _is_plain_linear(module):  # one that shares its input was met above, at its parent
            pack(module)  # type: ignore[arg-type]


def matrix_product_for(num_rows: int, model: PreTrainedModel) -> AbstractContextManager[None]:
    """On a CPU, torch's own bf16 product reads a matrix for a single row about 1.5 times faster than oneDNN's."""
    if num_rows == 1 and model.dtype == torch.bfloat16 and model.device.type == "cpu":
        return torch.backends.mkldnn.flags(enabled=False, allow_tf32=None)  # type: ignore[arg-type]
    return nullcontext()


def _is_plain_linear(module: object) -> bool:
    return type(module) is nn.Linear and "forward" not in vars(module)


def _is_plain_rms_norm(module: nn.Module) -> bool:
    """Named RMSNorm, with a weight and an epsilon, and equal to torch's on a trial input (some add 1 to it)."""
    if not type(module).__name__.endswith("RMSNorm") or not hasattr(module, "variance_epsilon"):
        return False
    weight = getattr(module, "weight", None)
    if weight is None or weight.dim() != 1 or "forward" in vars(module) or len(list(module.parameters())) != 1:
        return False
    trial = torch.linspace(-2, 3, weight.shape[0], device=weight.device, dtype=weight.dtype)[None]
    with torch.inference_mode():
        fused = _fused_norm(module)(trial)
        return torch.allclose(module(trial).float(), fused.float(), rtol=2e-2 if weight.itemsize < 4 else 1e-5)


def _fused_norm(module: nn.Module) -> Callable[[Tensor], Tensor]:
    epsilon: float = module.variance_epsilon  # type: ignore[assignment]
    return partial(_rms_norm, module._parameters, epsilon, torch.tensor(epsilon))


def _rms_norm(
    parameters: dict[str, nn.Parameter | None], epsilon: float, epsilon_there: Tensor, hidden_states: Tensor
) -> Tensor:
    """Looks the weight up at every call, and `partial` is copied with the module: a copy has weights of its own.

    On a CPU torch's norm is made of a dozen operations; these five take half as long for a few rows.
    """
    weight = parameters["weight"]
    assert weight is not None
    if not hidden_states.is_cpu:
        return F.rms_norm(hidden_states, weight.shape, weight, epsilon)
    norm = torch.linalg.vector_norm(hidden_states, dim=-1, keepdim=True, dtype=torch.float32)
    scale = torch.addcmul(epsilon_there, norm, norm, value=1 / weight.shape[0]).rsqrt_()
    return (hidden_states * scale * weight).to(hidden_states.dtype)


def _share_input(linears: Sequence[nn.Linear], packs: bool) -> None:
    biases = [linear.bias for linear in linears]
    if len({linear.weight.dtype for linear in linears}) > 1 or len({bias is None for bias in biases}) > 1:
        return
    shared = SharedProjection(linears, packs)
    for index, linear in enumerate(linears):
        linear.forward = partial(shared.output, index)  # type: ignore[method-assign]


class SharedProjection:
    """One matrix product for several linears that are called with the same input tensor.

    The first call computes all outputs, the others pick theirs up; a call with another tensor computes anew.
    A copied or unpickled model joins its own weights at its first call.
    """

    def __init__(self, linears: Sequence[nn.Linear], packs: bool) -> None:
        self.linears = list(linears)
        self.sizes = [linear.out_features for linear in linears]
        self.joined: tuple[Tensor, Tensor | None] | None = self._join()
        self.packed = PackedWeight() if packs else None
        self.input: Tensor | None = None
        self.waiting: dict[int, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the joined weights: in a copy, the linears' parameters are no views of them any more."""
        return vars(self) | {"joined": None, "input": None, "waiting": {}}

    def output(self, index: int, hidden_states: Tensor) -> Tensor:
        if hidden_states is not self.input or index not in self.waiting:
            self.joined = self.joined or self._join()
            self.input = hidden_states
            product = self.packed.product if self.packed else F.linear
            self.waiting = dict(enumerate(product(hidden_states, *self.joined).split(self.sizes, -1)))
        result = self.waiting.pop(index)
        if not self.waiting:
            self.input = None
        return result

    def _join(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of all linears in one tensor each; their parameters become views: held once."""
        return self._joined("weight"), None if self.linears[0].bias is None else self._joined("bias")

    def _joined(self, name: str) -> Tensor:
        with torch.inference_mode(False):  # weights that only inference may touch could not be changed later
            whole = torch.cat([getattr(linear, name) for linear in self.linears]).detach()
            for linear, rows in zip(self.linears, whole.split(self.sizes), strict=True):
                setattr(linear, name, nn.Parameter(rows, requires_grad=False))
        return whole

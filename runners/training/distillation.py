"""The cross-entropy of a drafter against its target's law, a few rows at a time.

Over a vocabulary of tens of thousands, what costs is memory traffic: rows are taken while they are in the cache, and
what the backward pass needs is known at once.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS = 16  # of some 10,000 fp32 values: less than a core's cache


def distillation(
    logits: Float[Tensor, "row draft"], wanted: Float[Tensor, "row draft"]
) -> tuple[Float[Tensor, " row"], Bool[Tensor, " row"]]:
    """Per row the cross-entropy of softmax(logits) against softmax(wanted), and whether the first choices agree."""
    loss, agrees = _Distillation.apply(logits, wanted)
    return loss, agrees


class _Distillation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        gradient, losses, agree = torch.empty_like(logits), [], []
        for rows, teacher, into in zip(logits.split(ROWS), wanted.split(ROWS), gradient.split(ROWS), strict=True):
            read, law = rows.float(), teacher.float()
            agree.append(_argmax(read) == _argmax(law))
            said, law = read.log_softmax(1), law.softmax(1)
            losses.append(-(law * said).sum(1))
            into.copy_(said.exp_().sub_(law))
        ctx.save_for_backward(gradient)
        agrees = torch.cat(agree)
        ctx.mark_non_differentiable(agrees)
        return torch.cat(losses), agrees

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        of_loss = grad_outputs[0]
        return gradient * of_loss[:, None].to(gradient.dtype), None


def _argmax(values: Tensor) -> Tensor:
    """NumPy's is vectorised where PyTorch's on a CPU is not."""
    return torch.from_numpy(values.numpy().argmax(1)) if values.device.type == "cpu" else values.argmax(1)

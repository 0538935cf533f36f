"""The attention function registered with transformers: every model's layers attend through it."""

from dataclasses import replace

from torch import Tensor, nn
from transformers import AttentionInterface

from backend.errors import TreebenchError
from backend.ops import Ops
from backend.ops.select import TORCH
from backend.plan import ForwardPlan

NAME = "treebench"
NOT_GIVEN = -1


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = NOT_GIVEN,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    tree_plan: ForwardPlan | None = None,
    tree_ops: Ops = TORCH,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention over a planned cache: query (batch, head, query, size), key and value the used part of the buffers."""
    if tree_plan is None:
        raise TreebenchError(f"{type(module).__name__} hands no keyword arguments on to its attention function")
    if attention_mask is not None:
        raise TreebenchError(f"{type(module).__name__} attends with a mask of its own")
    # None says "full attention" even where the module carries a window for other layers' sake
    window = getattr(module, "sliding_window", None) if sliding_window == NOT_GIVEN else sliding_window
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    output = tree_ops.attention(query, key, value, tree_plan, scale, window, softcap, s_aux)
    return output.transpose(1, 2).contiguous(), None


def everywhere(ops: Ops) -> Ops:
    """For a model whose layers lie on several devices: each attends by the plan's copy on its own."""

    def attention(query: Tensor, key: Tensor, value: Tensor, plan: ForwardPlan, *options: object) -> Tensor:
        return ops.attention(query, key, value, plan.on(query.device), *options)

    return replace(ops, attention=attention)


def use_tree_attention(model: nn.Module) -> None:
    """Make a transformers model attend through `attend`. No mask function goes by this name, so it builds no mask."""
    AttentionInterface.register(NAME, attend)
    model.set_attn_implementation(NAME)  # type: ignore[operator]

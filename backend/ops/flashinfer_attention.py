"""Tree attention by FlashInfer (Ye et al., 2025), as a cross-check of our kernel. Importing this module imports it.

Its custom mask covers the whole prefix and is built anew in every step, and rows go one by one, so it is no contestant
for speed at batches above 1. It has no attention sinks and no fp32.
"""

import flashinfer  # type: ignore[import-not-found]
import torch
from jaxtyping import Float
from torch import Tensor

from backend.errors import TreebenchError
from backend.ops import reference
from backend.plan import ForwardPlan

HEAD_SIZES = (64, 128, 256)
DTYPES = (torch.float16, torch.bfloat16)


def tree_attention(
    query: Float[Tensor, "batch head query size"],
    key: Float[Tensor, "batch kv_head slot size"],
    value: Float[Tensor, "batch kv_head slot value_size"],
    plan: ForwardPlan,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Float[Tensor, " head"] | None,
) -> Float[Tensor, "batch head query value_size"]:
    """Attention of tree nodes over the prefix and their ancestors.

    A pass over a prompt has no tree and goes to the reference. Slots that no query sees must be finite, as in the
    reference. Raises TreebenchError for attention sinks.
    """
    if plan.layout is None:
        return reference.tree_attention(query, key, value, plan, scale, window, softcap, sinks)
    if sinks is not None:
        raise TreebenchError("FlashInfer's custom masks know no attention sinks: use backend.ops=triton")
    rows = zip(query.transpose(1, 2), key, value, plan.visible_within(window), strict=True)
    outputs = [
        flashinfer.single_prefill_with_kv_cache(
            tokens.contiguous(),
            keys.contiguous(),
            values.contiguous(),
            custom_mask=visible,
            kv_layout="HND",  # of the cache, head by head; queries and outputs go token by token
            sm_scale=scale,
            logits_soft_cap=softcap,
        )
        for tokens, keys, values, visible in rows
    ]
    return torch.stack(outputs).transpose(1, 2)


def check_shapes(dtype: torch.dtype, head_size: int) -> None:
    if dtype not in DTYPES or head_size not in HEAD_SIZES:
        name = str(dtype).removeprefix("torch.")
        raise TreebenchError(
            f"FlashInfer has float16 and bfloat16 heads of size 64, 128 or 256, not {name} of size {head_size}; "
            "use backend.ops=triton"
        )

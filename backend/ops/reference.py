"""The backend's operations in plain torch: the CPU path, and the reference that kernels are tested against."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from backend.plan import ForwardPlan
from backend.tree import NO_NODE


def tree_attention(
    query: Float[Tensor, "batch head query size"],
    key: Float[Tensor, "batch kv_head slot size"],
    value: Float[Tensor, "batch kv_head slot value_size"],
    plan: ForwardPlan,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " head"] | None = None,
) -> Float[Tensor, "batch head query value_size"]:
    """Attention of tree nodes over the prefix and their ancestors, with grouped queries folded into rows.

    Folding the heads of a group into the query axis reads every key once per KV head and repeats nothing.
    """
    if plan.causal and window is None and softcap is None and sinks is None:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
    batch, heads, num_queries, size = query.shape
    groups = heads // key.shape[1]
    packed = query.reshape(batch, key.shape[1], groups * num_queries, size)
    everything = plan.visible is None and not plan.causal and window is None
    mask = None if everything else plan.mask(window, groups, query.dtype)
    if softcap is None and sinks is None:
        output = F.scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=scale)
    else:
        output = _attention_with_options(packed, key, value, mask, scale, softcap, _packed_sinks(sinks, key, query))
    return output.reshape(batch, heads, num_queries, value.shape[-1])


def keep(
    stack: Float[Tensor, "layer batch head slot size"],
    places: Int[Tensor, "batch path"],
    lengths: Int[Tensor, " batch"],
) -> None:
    """Slot `lengths + k` of each row takes what slot `lengths + places[:, k]` holds, in place; `NO_NODE` takes nothing.

    Places ascend and place k is at least k, so a row's sources are all read before the only overlapping stores. A row
    at a time: indexing rows and slots at once moves whole axes about. On the host, only rows where something moves: any
    other device would have to be waited for.
    """
    rows = _rows_that_move(places.tolist()) if places.is_cpu else range(len(places))
    if not rows:
        return
    order = torch.arange(places.shape[1], device=places.device)
    sources = lengths[:, None] + torch.where(places == NO_NODE, order, places)
    for row in rows:
        cells = stack[:, row]
        cells.index_copy_(2, lengths[row] + order, cells.index_select(2, sources[row]))


def _rows_that_move(places: list[list[int]]) -> list[int]:
    return [row for row, own in enumerate(places) if any(place not in (NO_NODE, k) for k, place in enumerate(own))]


def _packed_sinks(sinks: Tensor | None, key: Tensor, query: Tensor) -> Tensor | None:
    if sinks is None:
        return None
    per_row = sinks.view(key.shape[1], -1, 1).expand(-1, -1, query.shape[2])
    return per_row.reshape(1, key.shape[1], -1, 1).expand(query.shape[0], -1, -1, -1)


def _attention_with_options(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    scores = (query @ key.transpose(2, 3)).float() * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    if sinks is not None:  # a learned logit that takes part in the softmax and has no value
        scores = torch.cat([scores, sinks.float()], 3)
    weights = scores.softmax(3)[..., : key.shape[2]]
    return weights.to(value.dtype) @ value

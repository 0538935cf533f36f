"""KV compaction in place: one launch moves the accepted tokens of all layers behind the committed prefix."""

from typing import no_type_check

import triton
import triton.language as tl
from jaxtyping import Int
from torch import Tensor

from backend.ops.launch import lanes_for, launch

PLACES = 16


@no_type_check
@triton.jit(do_not_specialize=["num_places"])
def move_rows(
    STACK, PLACES_OF, LENGTHS, layer_stride, batch_stride, head_stride, slot_stride, num_heads, num_places,
    SIZE: tl.constexpr, BLOCK_SIZE: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """Grid (layers, batch x heads). Slot length + k takes what slot length + place[k] holds.

    Places ascend and place[k] >= k, so a later chunk reads only slots at or beyond its own destinations: a chunk that
    is read whole before it is written cannot lose anything. The barrier keeps that order within the program.
    """
    layer, batch = tl.program_id(0).to(tl.int64), (tl.program_id(1) // num_heads).to(tl.int64)
    head = (tl.program_id(1) % num_heads).to(tl.int64)
    size = tl.arange(0, BLOCK_SIZE)[None, :]
    length = tl.load(LENGTHS + batch)
    rows = STACK + layer * layer_stride + batch * batch_stride + head * head_stride + size
    for start in range(0, num_places, PLACES):
        k = start + tl.arange(0, PLACES)
        place = tl.load(PLACES_OF + batch * num_places + k, mask=k < num_places, other=-1)
        moves = ((place >= 0) & (place != k))[:, None] & (size < SIZE)
        kept = tl.load(rows + (length + place)[:, None] * slot_stride, mask=moves)
        tl.debug_barrier()
        tl.store(rows + (length + k)[:, None] * slot_stride, kept, mask=moves)
        tl.debug_barrier()


def keep(stack: Tensor, places: Int[Tensor, "batch path"], lengths: Int[Tensor, " batch"]) -> None:
    """Move within (layer, batch, head, slot, size) what lies `places` behind each row's `lengths`, in place."""
    layers, batch, heads, _, size = stack.shape
    grid = (layers, batch * heads)
    sizes = (*stack.stride()[:4], heads, places.shape[1], size, lanes_for(size), PLACES)
    launch(move_rows, grid, stack, places.contiguous(), lengths, *sizes, num_warps=4)

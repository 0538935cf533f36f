"""Tree attention for CUDA: the prefix is split over programs and read once per key head, the tree goes by bits.

Rows of a program are (token, head of the group) pairs, so that grouped queries share every key that is loaded. The
last split also takes the tree, whose visibility is one machine word per query and 64 slots. Softmax runs online in
base 2 and fp32 (FlashAttention-2, Dao, 2023); splits merge by their log-sum-exp (Flash-Decoding, 2023).
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from backend.errors import TreebenchError
from backend.ops import reference
from backend.ops.launch import IS_INTERPRETED, lanes_for, launch, num_processors
from backend.ops.tiles import MAX_FULL_PRECISION_TILE, MAX_HEAD_SIZE, Tile, splits_for, tile_for
from backend.ops.triton_bitmask import layout_words
from backend.plan import ForwardPlan, TreeLayout

MERGED_ROWS = 8
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@no_type_check
@triton.jit
def _logits(
    query, query_rest, key_rows, is_key, scale, softcap, SOFTCAP: tl.constexpr, SIZE: tl.constexpr, UPCAST: tl.constexpr
):
    """Scores in units of log 2. A head wider than the query's tile has its rest in `query_rest`."""
    BLOCK: tl.constexpr = key_rows.shape[1]
    size = tl.arange(0, BLOCK)[None, :]
    key = tl.load(key_rows, mask=is_key[:, None] & (size < SIZE), other=0.0)
    if UPCAST:
        query = query.to(tl.float32)
        key = key.to(tl.float32)
    scores = tl.dot(query, tl.trans(key), input_precision="ieee")
    if SIZE > BLOCK:
        rest = tl.load(key_rows + BLOCK, mask=is_key[:, None] & (size + BLOCK < SIZE), other=0.0)
        scores = tl.dot(query_rest, tl.trans(rest), scores, input_precision="ieee")
    scores = scores * scale
    if SOFTCAP:
        decay = tl.exp2(-2.8853900817779268 * tl.abs(scores / softcap))  # tanh by an exponential that cannot overflow
        scores = softcap * (1 - decay) / (1 + decay) * tl.where(scores < 0, -1.0, 1.0)
    return scores * 1.4426950408889634


@no_type_check
@triton.jit
def _absorb(scores, visible, value, acc, top, mass, UPCAST: tl.constexpr):
    """One step of the online softmax. A row that has seen nothing yet has top -inf."""
    scores = tl.where(visible, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    shift = tl.where(new_top == float("-inf"), 0.0, new_top)
    weights = tl.exp2(scores - shift[:, None])
    decay = tl.exp2(top - shift)
    mass = mass * decay + tl.sum(weights, 1)
    weights = weights.to(value.dtype)
    if UPCAST:
        weights = weights.to(tl.float32)
        value = value.to(tl.float32)
    acc = tl.dot(weights, value, acc * decay[:, None], input_precision="ieee")
    return acc, new_top, mass


@no_type_check
@triton.jit
def _bits(word, lane):
    """Bit `lane` of each word, by halves: a tile of 32-bit numbers takes half the registers."""
    low, high = (word & 0xFFFFFFFF).to(tl.int32), (word >> 32).to(tl.int32)
    half = tl.where((lane < 32)[None, :], low[:, None], high[:, None])
    return ((half >> (lane % 32)[None, :]) & 1) != 0


@no_type_check
@triton.jit
def _queries(query_rows, is_row, SIZE: tl.constexpr):
    """As much of each query as a tile holds, and its rest if the head is wider."""
    BLOCK: tl.constexpr = query_rows.shape[1]
    size = tl.arange(0, BLOCK)[None, :]
    query = tl.load(query_rows, mask=is_row[:, None] & (size < SIZE), other=0.0)
    rest = query
    if SIZE > BLOCK:
        rest = tl.load(query_rows + BLOCK, mask=is_row[:, None] & (size + BLOCK < SIZE), other=0.0)
    return query, rest


@no_type_check
@triton.jit
def _over_prefix(
    query, query_rest, key_rows, value_rows, key_slot, value_slot, base, length, limit, earliest, split, scale, softcap,
    acc, top, mass, KEYS: tl.constexpr, SPLITS: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    HAS_OWED: tl.constexpr, SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """This split's share of the slots below `base`; whole tiles before every query's window are passed over."""
    lane, value_size = tl.arange(0, KEYS), tl.arange(0, value_rows.shape[1])
    first = base * 0
    if WINDOW > 0:
        first = tl.maximum(length - WINDOW + 1, 0) // KEYS * KEYS
    share = tl.cdiv(tl.cdiv(base - first, KEYS), SPLITS) * KEYS
    begin = first + split * share
    stop = tl.minimum(begin + share, base)
    for start in range(begin, stop, KEYS):
        slot = start + lane
        is_key = slot < stop
        keys = key_rows + slot[:, None] * key_slot
        scores = _logits(query, query_rest, keys, is_key, scale, softcap, SOFTCAP, SIZE, UPCAST)
        visible = is_key[None, :]
        if WINDOW > 0:
            visible = visible & (slot[None, :] > earliest[:, None])
        if HAS_OWED:
            visible = visible & (slot[None, :] < limit[:, None])
        is_value = is_key[:, None] & (value_size < VALUE_SIZE)[None, :]
        value = tl.load(value_rows + slot[:, None] * value_slot, mask=is_value, other=0.0)
        acc, top, mass = _absorb(scores, visible, value, acc, top, mass, UPCAST)
    return acc, top, mass


@no_type_check
@triton.jit
def _over_tree(
    query, query_rest, key_rows, value_rows, key_slot, value_slot, base, word_row, has_word, positions, earliest,
    num_tree, scale, softcap, acc, top, mass, KEYS: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The slots from `base` on. KEYS divides 64, so a tile needs one word per row. Too short a loop to pipeline."""
    lane, value_size = tl.arange(0, KEYS), tl.arange(0, value_rows.shape[1])
    for start in tl.range(0, num_tree, KEYS, num_stages=1):
        place = start + lane
        word = tl.load(word_row + start // 64, mask=has_word, other=0)
        visible = _bits(word >> (start % 64), lane)
        if WINDOW > 0:
            position = tl.load(positions + place, mask=place < num_tree, other=0).to(tl.int32)
            visible = visible & (position[None, :] > earliest[:, None])
        is_seen = (tl.max(visible.to(tl.int32), 0) > 0)[:, None]  # what nobody sees may hold anything, NaN included
        slot = (base + place)[:, None]
        keys = key_rows + slot * key_slot
        scores = _logits(query, query_rest, keys, place < num_tree, scale, softcap, SOFTCAP, SIZE, UPCAST)
        is_value = is_seen & (value_size < VALUE_SIZE)[None, :]
        value = tl.load(value_rows + slot * value_slot, mask=is_value, other=0.0)
        acc, top, mass = _absorb(scores, visible, value, acc, top, mass, UPCAST)
    return acc, top, mass


@no_type_check
@triton.jit
def _write(OUT, PART, STATS, row, split, is_row, acc, top, mass, VALUE_SIZE: tl.constexpr, SPLITS: tl.constexpr):
    value_size = tl.arange(0, acc.shape[1])
    is_out = is_row[:, None] & (value_size < VALUE_SIZE)[None, :]
    if SPLITS == 1:
        out = acc / tl.where(mass > 0, mass, 1.0)[:, None]
        tl.store(OUT + row[:, None] * VALUE_SIZE + value_size[None, :], out.to(OUT.dtype.element_ty), mask=is_out)
    else:
        row = row * SPLITS + split
        tl.store(PART + row[:, None] * VALUE_SIZE + value_size[None, :], acc, mask=is_out)
        tl.store(STATS + row * 2, top, mask=is_row)
        tl.store(STATS + row * 2 + 1, mass, mask=is_row)


@no_type_check
@triton.jit(do_not_specialize=["num_queries", "num_tree", "num_words", "num_owed"])
def attend_split(
    QUERY, KEY, VALUE, OUT, PART, STATS, BASE, LENGTHS, WORDS, POSITIONS, TREE_POSITIONS, SINKS, scale, softcap,
    query_batch, query_head, query_token, key_batch, key_head, key_slot, value_batch, value_head, value_slot,
    num_heads, num_queries, num_tree, num_words, num_owed,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr, HAS_OWED: tl.constexpr,
    GROUP: tl.constexpr, SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_VALUE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Grid (row tiles, splits, batch x key heads). With one split OUT is written, else PART and STATS (top, mass)."""
    split, kv_heads = tl.program_id(1), num_heads // GROUP
    batch, kv_head = (tl.program_id(2) // kv_heads).to(tl.int64), (tl.program_id(2) % kv_heads).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token, head = row // GROUP, kv_head * GROUP + row % GROUP
    is_row, is_last = token < num_queries, split == SPLITS - 1
    size, value_size = tl.arange(0, BLOCK_SIZE)[None, :], tl.arange(0, BLOCK_VALUE)[None, :]
    query_rows = QUERY + batch * query_batch + (head * query_head + token * query_token)[:, None] + size
    query, query_rest = _queries(query_rows, is_row, SIZE)
    key_rows = KEY + batch * key_batch + kv_head * key_head + size
    value_rows = VALUE + batch * value_batch + kv_head * value_head + value_size
    base, length = tl.load(BASE + batch).to(tl.int32), tl.load(LENGTHS + batch).to(tl.int32)
    position = tl.load(POSITIONS + batch * num_queries + token, mask=is_row, other=0)
    earliest = position.to(tl.int32) - WINDOW  # this position and earlier ones lie before the window
    limit = tl.where(token < num_owed, tl.minimum(length + token + 1, base), base)
    acc = tl.zeros([ROWS, BLOCK_VALUE], tl.float32)
    top, mass = tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.float32)
    if HAS_SINKS:  # a learned logit that takes part in the softmax and has no value
        sink = tl.load(SINKS + head, mask=is_row, other=0.0).to(tl.float32) * 1.4426950408889634
        top, mass = tl.where(is_last, sink, top), tl.where(is_last, 1.0, mass)
    acc, top, mass = _over_prefix(
        query, query_rest, key_rows, value_rows, key_slot, value_slot, base, length, limit, earliest, split, scale,
        softcap, acc, top, mass, KEYS, SPLITS, WINDOW, SOFTCAP, HAS_OWED, SIZE, VALUE_SIZE, UPCAST,
    )  # fmt: skip
    word_row = WORDS + (batch * (num_queries - num_owed) + token - num_owed) * num_words
    acc, top, mass = _over_tree(
        query, query_rest, key_rows, value_rows, key_slot, value_slot, base, word_row, is_row & (token >= num_owed),
        TREE_POSITIONS + batch * num_tree, earliest, tl.where(is_last, num_tree, 0), scale, softcap,
        acc, top, mass, KEYS, WINDOW, SOFTCAP, SIZE, VALUE_SIZE, UPCAST,
    )  # fmt: skip
    _write(OUT, PART, STATS, (batch * num_queries + token) * num_heads + head, split, is_row, acc, top, mass,
           VALUE_SIZE, SPLITS)  # fmt: skip


@no_type_check
@triton.jit(do_not_specialize=["num_rows"])
def attend_merge(
    OUT, PART, STATS, num_rows, VALUE_SIZE: tl.constexpr, BLOCK_VALUE: tl.constexpr, SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of batch x token x head): the weighted sum of the splits' partial outputs."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    is_row = row < num_rows
    split, value_size = tl.arange(0, SPLITS), tl.arange(0, BLOCK_VALUE)
    stats = STATS + (row * SPLITS)[:, None] * 2 + split[None, :] * 2
    highest = tl.max(tl.load(stats, mask=is_row[:, None], other=0.0), 1)
    shift = tl.where(highest == float("-inf"), 0.0, highest)
    acc, total = tl.zeros([ROWS, BLOCK_VALUE], tl.float32), tl.zeros([ROWS], tl.float32)
    is_value = is_row[:, None] & (value_size < VALUE_SIZE)[None, :]
    for one in range(SPLITS):
        of_split = row * SPLITS + one
        weight = tl.exp2(tl.load(STATS + of_split * 2, mask=is_row, other=0.0) - shift)
        total += weight * tl.load(STATS + of_split * 2 + 1, mask=is_row, other=0.0)
        part = PART + of_split[:, None] * VALUE_SIZE + value_size[None, :]
        acc += weight[:, None] * tl.load(part, mask=is_value, other=0.0)
    out = acc / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(OUT + row[:, None] * VALUE_SIZE + value_size[None, :], out.to(OUT.dtype.element_ty), mask=is_value)


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
    """Attention of tree nodes over the prefix and their ancestors; the output is laid out token by token.

    Slots that no query sees may hold anything. A pass over a prompt has no tree and goes to the reference. Raises
    TreebenchError for head sizes and dtypes without a kernel.
    """
    if plan.layout is None:
        return reference.tree_attention(query, key, value, plan, scale, window, softcap, sinks)
    check_shapes(query.dtype, max(query.shape[3], value.shape[3]))
    batch, heads, num_queries, _ = query.shape
    group = heads // key.shape[1]
    tiles = -(-num_queries * group // 64) * batch * key.shape[1]
    splits = splits_for(tiles, key.shape[2] - plan.layout.shown.shape[1], num_processors(query.device))
    tile = tile_for(query.dtype, max(query.shape[3], value.shape[3]), num_queries * group, splits)
    return attend(query, key, value, plan.layout, plan.positions, scale, window, softcap, sinks, tile, splits)


def check_shapes(dtype: torch.dtype, head_size: int) -> None:
    name = str(dtype).removeprefix("torch.")
    if head_size > MAX_HEAD_SIZE:
        raise TreebenchError(
            f"{name} heads of size {head_size} have no Triton kernel (at most {MAX_HEAD_SIZE}); use backend.ops=torch"
        )
    if dtype not in DTYPES:
        raise TreebenchError(
            f"dtype {name} has no Triton kernel (float32, float16, bfloat16 have); use backend.ops=torch"
        )


def attend(
    query: Tensor, key: Tensor, value: Tensor, layout: TreeLayout, positions: Int[Tensor, "batch query"],
    scale: float, window: int | None, softcap: float | None, sinks: Tensor | None, tile: Tile, splits: int,
) -> Tensor:  # fmt: skip
    """Start the kernels with a tile and a number of splits (a power of two) of one's own choice."""
    batch, heads, num_queries, size = query.shape
    kv_heads, value_size = key.shape[1], value.shape[3]
    query, key, value = _rows_contiguous(query), _rows_contiguous(key), _rows_contiguous(value)
    out = query.new_empty(batch, num_queries, heads, value_size)
    part, stats = _partial(out, splits)
    words = layout_words(layout)
    grid = (-(-num_queries * heads // kv_heads // tile.rows), splits, batch * kv_heads)
    launch(
        attend_split, grid, query, key, value, out, part, stats, layout.base, layout.lengths, words,
        positions.contiguous(), layout.positions, out if sinks is None else sinks, scale, softcap or 1.0,
        *query.stride()[:3], *key.stride()[:3], *value.stride()[:3],
        heads, num_queries, layout.shown.shape[1], words.shape[2], layout.num_owed,
        **constants(size, value_size, heads // kv_heads, tile, splits, query.dtype),
        WINDOW=window or 0, SOFTCAP=softcap is not None, HAS_SINKS=sinks is not None,
        HAS_OWED=layout.num_owed > 0, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    if splits > 1:
        rows = batch * num_queries * heads
        sizes = (rows, value_size, lanes_for(value_size), splits, MERGED_ROWS)
        launch(attend_merge, (-(-rows // MERGED_ROWS),), out, part, stats, *sizes, num_warps=4)
    return out.transpose(1, 2)


def constants(size: int, value_size: int, group: int, tile: Tile, splits: int, dtype: torch.dtype) -> dict[str, Any]:
    """Compile-time constants that follow from shapes. The interpreter gets products in half precision wrong: widen."""
    return {
        "GROUP": group,
        "SIZE": size,
        "VALUE_SIZE": value_size,
        "BLOCK_SIZE": min(lanes_for(size), MAX_FULL_PRECISION_TILE) if dtype == torch.float32 else lanes_for(size),
        "BLOCK_VALUE": lanes_for(value_size),
        "ROWS": tile.rows,
        "KEYS": tile.keys,
        "SPLITS": splits,
        "UPCAST": IS_INTERPRETED and dtype != torch.float32,
    }


def _partial(out: Tensor, splits: int) -> tuple[Tensor, Tensor]:
    """Where splits leave their sums; never touched with one split."""
    if splits == 1:
        return out, out
    part = out.new_empty(*out.shape[:3], splits, out.shape[3], dtype=torch.float32)
    return part, part.new_empty(*part.shape[:4], 2)


def _rows_contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()

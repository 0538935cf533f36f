"""The variants of every kernel that the default tiles lead to, with the signatures that a launch would have."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from backend.ops import triton_attention, triton_bitmask, triton_compact, triton_follow, triton_walk
from backend.ops.tiles import tile_for

NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
HEAD_SIZES = (64, 80, 96, 128, 256)
WITH_OPTIONS = (64, 128, 256)
ROWS = (16, 32, 64)  # one for each class of tiles
SPLITS = 8


@dataclass(frozen=True)
class Variant:
    """A kernel with its argument types, compile-time constants, and the arguments that a launch knows as aligned."""

    kernel: Any
    name: str
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    aligned: tuple[str, ...]
    warps: int
    stages: int = 3


def variant(
    kernel: Any, name: str, pointers: Mapping[Any, str], constants: Mapping[str, Any], warps: int, stages: int = 3,
    scalars: Mapping[str, str] | None = None, aligned: tuple[str, ...] = (),
) -> Variant:  # fmt: skip
    """Arguments that are neither pointers nor constants nor named scalars are 32-bit integers."""
    kinds = {**pointers, **dict.fromkeys(constants, "constexpr"), **(scalars or {})}
    signature = {argument: kinds.get(argument, "i32") for argument in kernel.arg_names}
    return Variant(kernel, name, signature, constants, (*pointers, *aligned), warps, stages)


def variants() -> Iterator[Variant]:
    for size in HEAD_SIZES:
        for rows in ROWS:
            for splits in (1, SPLITS):
                yield attention(torch.bfloat16, size, rows, splits)
        for splits in (1, SPLITS):
            yield attention(torch.float32, size, ROWS[-1], splits)
    for rows in ROWS:
        yield attention(torch.float16, 128, rows, SPLITS)
        for size in WITH_OPTIONS:
            yield attention(torch.bfloat16, size, rows, SPLITS, options=True)
    yield attention(torch.bfloat16, 192, ROWS[-1], SPLITS, value_size=128)
    for size in WITH_OPTIONS:
        yield attention(torch.float32, size, ROWS[-1], SPLITS, options=True)
        yield merge(size)
        yield compaction(torch.bfloat16, size)
    yield compaction(torch.float32, 128)
    yield words()
    for width in (64, 256, 512):
        yield from (following(width, distinct) for distinct in (False, True))
    yield from (rejection(replaces) for replaces in (False, True))


def attention(
    dtype: torch.dtype, size: int, rows: int, splits: int, options: bool = False, value_size: int | None = None
) -> Variant:
    value_size = value_size or size
    tile = tile_for(dtype, max(size, value_size), rows, splits)
    name = NAMES[dtype]
    constants = triton_attention.constants(size, value_size, 4, tile, splits, dtype) | {
        "WINDOW": 4096 if options else 0,
        "SOFTCAP": options,
        "HAS_SINKS": options,
        "HAS_OWED": options,
    }
    integers = ("BASE", "LENGTHS", "WORDS", "POSITIONS", "TREE_POSITIONS")
    pointers = {
        **dict.fromkeys(("QUERY", "KEY", "VALUE", "OUT", "SINKS"), f"*{name}"),
        **dict.fromkeys(("PART", "STATS"), "*fp32" if splits > 1 else f"*{name}"),
        **dict.fromkeys(integers, "*i64"),
    }
    strides = tuple(f"{tensor}_{axis}" for tensor in ("key", "value") for axis in ("batch", "head", "slot"))
    strides += ("query_batch", "query_head", "query_token")
    text = f"{name}, size {size if value_size == size else f'{size}/{value_size}'}, up to {rows} rows, splits {splits}"
    text = text.replace("up to 64", "more") + (", all options" if options else "")
    text += f"; tile {tile.rows} x {tile.keys}, {tile.stages} stages"
    scalars = {"scale": "fp32", "softcap": "fp32"}
    return variant(
        triton_attention.attend_split, text, pointers, constants, tile.warps, tile.stages, scalars, strides
    )  # fmt: skip


def merge(size: int) -> Variant:
    pointers = {"OUT": "*bf16", "PART": "*fp32", "STATS": "*fp32"}
    constants = {"VALUE_SIZE": size, "BLOCK_VALUE": size, "SPLITS": 32, "ROWS": triton_attention.MERGED_ROWS}
    return variant(triton_attention.attend_merge, f"size {size}, 32 splits", pointers, constants, 4)


def compaction(dtype: torch.dtype, size: int) -> Variant:
    pointers = {"STACK": f"*{NAMES[dtype]}", "PLACES_OF": "*i64", "LENGTHS": "*i64"}
    constants = {"SIZE": size, "BLOCK_SIZE": size, "PLACES": triton_compact.PLACES}
    strides = ("layer_stride", "batch_stride", "head_stride", "slot_stride")
    scalars = {"layer_stride": "i64"}
    name = f"{NAMES[dtype]}, size {size}"
    return variant(triton_compact.move_rows, name, pointers, constants, 4, scalars=scalars, aligned=strides)


def words() -> Variant:
    pointers = dict.fromkeys(("ANCESTORS", "SHOWN", "WORDS"), "*i64")
    return variant(triton_bitmask.build_words, "any width", pointers, {"QUERIES": triton_bitmask.QUERIES}, 4)


def following(width: int, distinct: bool) -> Variant:
    pointers = dict.fromkeys(("NODES", "TOKENS", "PARENTS", "DEPTHS", "ANCESTORS", "PICKS", "PATH", "BONUS"), "*i64")
    constants = {"DISTINCT": distinct, "WIDTH": width, "CHUNK": triton_follow.chunk_for(width)}
    name = f"up to {width} nodes" + (", i.i.d. siblings" if distinct else "")
    return variant(triton_follow.follow_picks, name, pointers, constants, triton_follow.warps_for(width))


def rejection(replaces: bool) -> Variant:
    integers = dict.fromkeys(("LAW_PLACES", "TOKENS", "PARENTS", "AT", "VANISHED"), "*i64")
    pointers = {**dict.fromkeys(("TARGETS", "LAWS", "LEFT", "LAW"), "*fp32"), **integers, "UNIFORMS": "*fp64"}
    constants = {"REPLACES": replaces, "BLOCK": triton_walk.BLOCK}
    name = "i.i.d." if replaces else "without replacement"
    return variant(triton_walk.walk_nodes, name, pointers, constants, triton_walk.WARPS)

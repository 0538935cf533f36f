"""Ancestor words in slot order: which tree slots each node of a forward sees, 64 to a machine word."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Int
from torch import Tensor

from backend.ops.launch import launch
from backend.plan import TreeLayout
from backend.tree import WORD_BITS

QUERIES = 16


@no_type_check
@triton.jit(do_not_specialize=["num_nodes", "num_shown", "num_queries", "set_words", "num_words"])
def build_words(
    ANCESTORS, SHOWN, WORDS, num_nodes, num_shown, num_queries, set_words, num_words, QUERIES: tl.constexpr
):  # fmt: skip
    """Grid (query tiles, words, batch). Bit j of word w: tree slot 64 w + j holds the query or an ancestor of it."""
    batch, out_word = tl.program_id(2).to(tl.int64), tl.program_id(1)
    query, bit = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES), tl.arange(0, 64)
    place = out_word * 64 + bit
    first_query = num_shown - num_queries
    node = tl.load(SHOWN + batch * num_shown + first_query + query, mask=query < num_queries, other=-1)
    key = tl.load(SHOWN + batch * num_shown + place, mask=place < num_shown, other=-1)
    own_set = ANCESTORS + (batch * num_nodes + tl.maximum(node, 0)) * set_words
    known = (node >= 0)[:, None] & (key >= 0)[None, :]
    word = tl.load(own_set[:, None] + (key // 64)[None, :], mask=known, other=0)
    seen = (word >> (tl.maximum(key, 0) % 64)[None, :]) & 1
    words = tl.sum(seen << bit[None, :].to(tl.int64), 1)
    out = WORDS + (batch * num_queries + query) * num_words + out_word
    tl.store(out, words, mask=query < num_queries)


def layout_words(layout: TreeLayout) -> Int[Tensor, "batch node word"]:
    """The layout's words, built at the first call."""
    if layout.words is None:
        layout.words = ancestor_words(layout.tree.ancestors, layout.shown, layout.num_nodes)
    return layout.words


def ancestor_words(
    ancestors: Int[Tensor, "batch node word"], shown: Int[Tensor, "batch shown"], num_queries: int
) -> Int[Tensor, "batch query shown_word"]:
    """For the last `num_queries` of the `shown` nodes: which of `shown` are on their path to the root."""
    ancestors, shown = ancestors.contiguous(), shown.contiguous()
    batch, num_shown = shown.shape
    num_words = -(-num_shown // WORD_BITS)
    words = torch.empty(batch, num_queries, num_words, dtype=torch.int64, device=shown.device)
    grid = (-(-num_queries // QUERIES), num_words, batch)
    sizes = (ancestors.shape[1], num_shown, num_queries, ancestors.shape[2], num_words, QUERIES)
    launch(build_words, grid, ancestors, shown, words, *sizes, num_warps=4)
    return words

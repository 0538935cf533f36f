"""Verification without a walk: from one pick of the target per node to the deepest path that the picks follow."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Int
from torch import Tensor

from backend.ops.launch import lanes_for, launch
from backend.tree import Accepted, Draft, Proposal


@no_type_check
@triton.jit
def _matches(NODES, TOKENS, PARENTS, PICKS, width, place, node, exists, DISTINCT: tl.constexpr, CHUNK: tl.constexpr):
    """Whether each node's token is its parent's pick. DISTINCT: and no earlier sibling has the same token."""
    token = tl.load(TOKENS + node, mask=exists, other=-1)
    parent = tl.load(PARENTS + node, mask=exists, other=-1)
    picked = tl.full(place.shape, -2, tl.int64)
    copies = tl.zeros(place.shape, tl.int32)
    for start in range(0, width, CHUNK):
        other_place = start + tl.arange(0, CHUNK)
        other = tl.load(NODES + other_place, mask=other_place < width, other=-1)
        pick = tl.load(PICKS + other_place, mask=other_place < width, other=-1)
        is_parent = (parent[:, None] == other[None, :]) & (other >= 0)[None, :]
        picked = tl.maximum(picked, tl.max(tl.where(is_parent, pick[None, :], -2), 1))
        if DISTINCT:
            other_token = tl.load(TOKENS + other, mask=other >= 0, other=-1)
            other_parent = tl.load(PARENTS + other, mask=other >= 0, other=-1)
            same = (token[:, None] == other_token[None, :]) & (parent[:, None] == other_parent[None, :])
            earlier = same & (other_place[None, :] < place[:, None]) & (other >= 0)[None, :]
            copies += tl.sum(earlier.to(tl.int32), 1)
    return ((token == picked) & (copies == 0)) | (place == 0)


@no_type_check
@triton.jit(do_not_specialize=["width", "num_nodes", "num_words", "path_length"])
def follow_picks(
    NODES, TOKENS, PARENTS, DEPTHS, ANCESTORS, PICKS, PATH, BONUS, width, num_nodes, num_words, path_length,
    DISTINCT: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Grid (batch). A node stands if no bit of its ancestor set is that of a node that does not match; the deepest
    node that stands wins, the first of several, and its own set is the path, in the order of depth."""
    batch = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, WIDTH)
    NODES += batch * width
    PICKS += batch * width
    node = tl.load(NODES + place, mask=place < width, other=-1)
    exists, node = node >= 0, tl.maximum(node, 0)
    of_row = batch * num_nodes
    match = _matches(
        NODES, TOKENS + of_row, PARENTS + of_row, PICKS, width, place, node, exists, DISTINCT, CHUNK
    )  # fmt: skip
    sets = ANCESTORS + of_row * num_words
    broken = tl.where(match | (exists == 0), 0, tl.full([WIDTH], 1, tl.int64) << (node % 64))
    stands = exists
    for word in range(0, num_words):
        of_word = tl.sum(tl.where(node // 64 == word, broken, 0), 0)
        stands = stands & ((tl.load(sets + node * num_words + word, mask=exists, other=0) & of_word) == 0)
    depth = tl.load(DEPTHS + of_row + node, mask=exists, other=0)
    best = tl.max(tl.where(stands, depth * WIDTH + (WIDTH - 1 - place), -1), 0)
    winner = tl.where(best < 0, 0, WIDTH - 1 - best % WIDTH)
    height = tl.where(best < 0, tl.load(DEPTHS + of_row + tl.maximum(tl.load(NODES), 0)), best // WIDTH)
    tl.store(BONUS + batch, tl.load(PICKS + winner))
    winner_set = sets + tl.maximum(tl.load(NODES + winner), 0) * num_words
    on_path = ((tl.load(winner_set + node // 64, mask=exists, other=0) >> (node % 64)) & 1) != 0
    tl.store(PATH + batch * path_length + depth, node, mask=exists & on_path)
    for start in range(0, path_length, WIDTH):
        index = start + place
        tl.store(PATH + batch * path_length + index, tl.full([WIDTH], -1, tl.int64),
                 mask=(index > height) & (index < path_length))  # fmt: skip


def follow(draft: Draft, picks: Int[Tensor, "batch width"]) -> Accepted:
    """The deepest path of the draft whose tokens the target picked; of equal i.i.d. siblings only the first counts."""
    tree, nodes = draft.tree, draft.nodes.contiguous()
    batch, width = nodes.shape
    path = torch.empty(batch, tree.height + 1, dtype=torch.int64, device=nodes.device)
    bonus = torch.empty(batch, dtype=torch.int64, device=nodes.device)
    lanes = lanes_for(width)
    launch(
        follow_picks, (batch,), nodes, tree.tokens.contiguous(), tree.parents.contiguous(), tree.depths.contiguous(),
        tree.ancestors.contiguous(), picks.contiguous(), path, bonus, width, tree.num_nodes, tree.ancestors.shape[2],
        tree.height + 1, draft.proposal is Proposal.IID, lanes, chunk_for(lanes), num_warps=warps_for(lanes),
    )  # fmt: skip
    return Accepted(path, bonus)


def chunk_for(lanes: int) -> int:
    """Nodes that are compared with all others at once, as many as registers hold."""
    return 32 if lanes <= 256 else 16


def warps_for(lanes: int) -> int:
    return 4 if lanes <= 128 else 8

"""Random trees, caches and drafts for kernels, and where the tests run."""

import os
import random
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from backend.ops import Ops
from backend.ops.select import TORCH, create_ops
from backend.ops.tiles import Tile, tile_for
from backend.plan import ForwardPlan, TreeLayout, tree_plan
from backend.tree import NO_NODE, TokenTree

DEVICE = torch.device(os.environ.get("TREE_DEVICE", "cpu"))
BOUNDS = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2.5e-2}  # absolute, against fp64, for normal values
HEAD_SIZES = [(64, 64), (80, 80), (96, 96), (128, 128), (256, 256), (8, 8), (48, 32), (192, 128)]


def triton_ops() -> Ops:
    return create_ops("triton", DEVICE)


def random_tree(choose: random.Random, batch: int, num_nodes: int, vocabulary: int = 50) -> TokenTree:
    """Levels of random widths below random parents; rows miss some nodes and all that would hang below them."""
    tree = TokenTree.root(torch.tensor([choose.randrange(vocabulary) for _ in range(batch)]))
    while tree.num_nodes < num_nodes:
        width = min(choose.randint(1, 40), num_nodes - tree.num_nodes)
        parents = torch.tensor([[parent_for(choose, tree, row) for _ in range(width)] for row in range(batch)])
        tokens = torch.tensor([[choose.randrange(vocabulary) for _ in range(width)] for _ in range(batch)])
        tree = tree.add(parents, tokens, torch.zeros(parents.shape))
    return tree


def parent_for(choose: random.Random, tree: TokenTree, row: int) -> int:
    parent = choose.randrange(tree.num_nodes)
    return NO_NODE if choose.random() < 0.1 or not tree.exists[row, parent] else parent


def on_device(tree: TokenTree) -> TokenTree:
    return replace(tree, **{name: value.to(DEVICE) for name, value in vars(tree).items() if name != "height"})


def plan_on_device(plan: ForwardPlan) -> ForwardPlan:
    layout = plan.layout
    assert layout is not None
    moved = TreeLayout(
        on_device(layout.tree), layout.shown.to(DEVICE), layout.num_nodes, layout.lengths.to(DEVICE),
        layout.base.to(DEVICE), layout.num_owed,
    )  # fmt: skip
    return ForwardPlan(plan.slots.to(DEVICE), plan.positions.to(DEVICE), plan.used, layout=moved)


def random_plan(choose: random.Random, batch: int, width: int, longest: int) -> ForwardPlan:
    """Some nodes are cached already, the last `width` are new; some plans have owed tokens."""
    num_entries = choose.choice([0, 0, 1, 9])
    tree = random_tree(choose, batch, num_entries + width)
    order = torch.arange(tree.num_nodes)[: num_entries + width]
    shown = order.masked_fill(~tree.exists, NO_NODE)
    lengths = torch.tensor([choose.choice([0, longest, choose.randint(0, longest)]) for _ in range(batch)])
    num_owed = choose.choice([0, 0, 0, 1, 3]) if num_entries == 0 else 0
    owed = torch.tensor([choose.randint(0, num_owed) for _ in range(batch)]) if num_owed else None
    return tree_plan(
        tree, shown[:, num_entries:], shown[:, :num_entries], lengths, int(lengths.max()), owed, num_owed
    )  # fmt: skip


@dataclass
class AttentionCase:
    """What attention is given. Slots that nobody sees hold NaN; `clean` is the same with zeros there."""

    plan: ForwardPlan
    query: Tensor
    key: Tensor
    value: Tensor
    options: dict[str, Any]
    tile: Tile
    splits: int

    @classmethod
    def random(cls, seed: int) -> "AttentionCase":
        choose = random.Random(seed)
        batch, kv_heads, group = choose.randint(1, 3), choose.randint(1, 2), choose.choice([1, 2, 3, 4, 8])
        width = choose.choice([1, 1, 2, 7, 16, 33, 64, 65, 130, 256])
        if width > 60:
            batch, kv_heads, group = 1, 1, min(group, 2)
        plan = random_plan(choose, batch, width, choose.choice([1, 20, 90]))
        size, value_size = choose.choice(HEAD_SIZES)
        dtype = choose.choice(list(BOUNDS))
        splits = choose.choice([1, 2, 4]) if batch * kv_heads < 4 else 1
        queries = plan.positions.shape[1]
        tile = tile_for(dtype, max(size, value_size), queries * group, splits)
        if DEVICE.type == "cpu" and queries * group > 64:  # the interpreter is slow per program and knows no limits
            tile = Tile(128, 64, 8, 2)
        generator = torch.Generator().manual_seed(seed)
        query = torch.randn(batch, queries, kv_heads * group, size, generator=generator).to(dtype).transpose(1, 2)
        key = torch.randn(batch, kv_heads, plan.used + 3, size, generator=generator).to(dtype)
        value = torch.randn(batch, kv_heads, plan.used + 3, value_size, generator=generator).to(dtype)
        sinks = torch.randn(kv_heads * group, generator=generator) if choose.random() < 0.25 else None
        options = {
            "scale": size**-0.5,
            "window": choose.choice([None, None, 5, 64]),
            "softcap": choose.choice([None, None, 2.0, 30.0]),
            "sinks": sinks,
        }
        return cls(plan, query, key, value, options, tile, splits)

    def expected(self) -> Tensor:
        """The reference in fp64; zeros stand where nothing is seen."""
        key, value = (tensor.double() for tensor in self.clean())
        options = self.options | {"sinks": None if self.options["sinks"] is None else self.options["sinks"].double()}
        return TORCH.attention(self.query.double(), key, value, self.plan, **options)

    def error(self, found: Tensor) -> float:
        """The largest, at queries that stand for something."""
        return float(((found.double() - self.expected()).abs() * self.live()).max())

    def clean(self) -> tuple[Tensor, Tensor]:
        """Keys and values of the used slots, with zeros where nobody looks."""
        dead, used = self.dead(), self.plan.used
        return self.key[:, :, :used].masked_fill(dead, 0.0), self.value[:, :, :used].masked_fill(dead, 0.0)

    def dead(self) -> Tensor:
        visible = self.plan.visible
        if visible is None:  # one query that sees every used slot
            visible = torch.ones(*self.plan.positions.shape, self.plan.used, dtype=torch.bool)
        return ~visible.any(1)[:, None, :, None]

    def poisoned(self) -> tuple[Tensor, Tensor]:
        dead = torch.nn.functional.pad(self.dead(), (0, 0, 0, 3), value=True)
        return self.key.masked_fill(dead, torch.nan), self.value.masked_fill(dead, torch.nan)

    def live(self) -> Tensor:
        """Queries that stand for something: nodes of the tree, and tokens that the row owes."""
        layout = self.plan.layout
        assert layout is not None
        is_owed = torch.arange(layout.num_owed) < layout.owed[:, None]
        return torch.cat([is_owed, layout.nodes != NO_NODE], 1)[:, None, :, None]

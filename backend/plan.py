"""Where the tokens of one forward go in the cache and what each of them may see."""

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from backend.tree import NO_NODE, TokenTree


@dataclass
class TreeLayout:
    """What the tokens of one forward see: leading slots of their row, and tree slots by ancestry.

    Tree slot `base + j` holds node `shown[:, j]`; the forward's own nodes are the last of them. Owed tokens, in front
    of the nodes, see the prefix and each other causally. The dense mask is built only for operations that ask for it;
    kernels read `words` instead, which the first of them builds.
    """

    tree: TokenTree
    shown: Int[Tensor, "batch shown"]
    num_nodes: int
    lengths: Int[Tensor, " batch"]  # committed tokens; no query has a smaller position
    base: Int[Tensor, " batch"]  # lengths and owed tokens
    num_owed: int
    words: Int[Tensor, "batch node word"] | None = None  # bit j % 64 of word j // 64 stands for tree slot j

    def on(self, device: torch.device) -> "TreeLayout":
        """A copy on another device."""
        tensors = {name: getattr(self, name).to(device) for name in ("shown", "lengths", "base")}
        words = None if self.words is None else self.words.to(device)
        return replace(self, tree=self.tree.on(device), words=words, **tensors)

    @property
    def nodes(self) -> Int[Tensor, "batch node"]:
        return self.shown[:, self.shown.shape[1] - self.num_nodes :]

    @property
    def owed(self) -> Int[Tensor, " batch"]:
        return self.base - self.lengths

    @property
    def slots(self) -> Int[Tensor, "batch shown"]:
        return self.base[:, None] + torch.arange(self.shown.shape[1], device=self.base.device)

    @cached_property
    def positions(self) -> Int[Tensor, "batch shown"]:
        return self.base[:, None] + self.tree.depths.gather(1, self.shown.clamp(min=0))

    def visible(self, used: int) -> Bool[Tensor, "batch query slot"]:
        seen = self.tree.is_ancestor(self.shown, self.nodes)
        slot = torch.arange(used, device=self.base.device)
        visible = (slot < self.base[:, None])[:, None, :].repeat(1, seen.shape[1], 1)
        visible.scatter_(2, self.slots[:, None, :].expand(-1, seen.shape[1], -1), seen)
        visible[:, :, 0] |= ~seen.any(2)  # a padded query must see something finite
        return torch.cat([self._visible_to_owed(slot), visible], 1) if self.num_owed else visible

    def _visible_to_owed(self, slot: Tensor) -> Bool[Tensor, "batch owed slot"]:
        order = torch.arange(self.num_owed, device=slot.device)
        is_owed = (order < self.owed[:, None])[:, :, None]
        visible = (slot <= (self.lengths[:, None] + order)[:, :, None]) & is_owed
        visible[:, :, :1] |= ~is_owed
        return visible

    def slot_positions(self, used: int) -> Int[Tensor, "batch slot"]:
        positions = torch.arange(used, device=self.base.device).repeat(self.shown.shape[0], 1)
        return positions.scatter_(1, self.slots, self.positions)


@dataclass
class ForwardPlan:
    """Slots, positions and visibility of the tokens of one forward.

    `used` slots of every row are read. `layout` None means a pass over all used slots, `causal` a prompt pass into an
    empty cache. `start` is the first slot where all rows write the same contiguous run.
    """

    slots: Int[Tensor, "batch query"]
    positions: Int[Tensor, "batch query"]
    used: int
    start: int | None = None
    causal: bool = False
    layout: TreeLayout | None = None
    sees_all: bool = False  # the only query sees every used slot
    _masks: dict[tuple[int | None, int, torch.dtype], Tensor] = field(default_factory=dict)
    _copies: dict[torch.device, "ForwardPlan"] = field(default_factory=dict)

    def on(self, device: torch.device) -> "ForwardPlan":
        """This plan where `device` is its own, else a copy there, made once for all layers of that device."""
        if device == self.slots.device:
            return self
        if device not in self._copies:
            layout = None if self.layout is None else self.layout.on(device)
            tensors = {"slots": self.slots.to(device), "positions": self.positions.to(device)}
            self._copies[device] = replace(self, layout=layout, _masks={}, _copies={}, **tensors)
        return self._copies[device]

    @cached_property
    def visible(self) -> Bool[Tensor, "batch query slot"] | None:
        """The dense mask of a tree; None where it would say nothing."""
        return None if self.layout is None or self.sees_all else self.layout.visible(self.used)

    def mask(self, window: int | None, groups: int, dtype: torch.dtype) -> Tensor:
        """Additive mask (batch, 1, groups * query, slot), built once per forward for each kind of layer."""
        key = (window, groups, dtype)
        if key not in self._masks:
            visible = self.visible_within(window)
            mask = torch.zeros(visible.shape, dtype=dtype, device=self.slots.device)
            mask.masked_fill_(~visible, torch.finfo(dtype).min)
            self._masks[key] = mask.repeat(1, groups, 1)[:, None]
        return self._masks[key]

    @property
    def windows(self) -> set[int]:
        """Sizes of the sliding windows that layers have asked for so far."""
        plans = (self, *self._copies.values())
        return {window for plan in plans for window, *_ in plan._masks if window is not None}

    def visible_within(self, window: int | None) -> Bool[Tensor, "batch query slot"]:
        """The dense mask. Windows are measured in positions, i.e. by depth in the tree, never by slot."""
        queries = self.positions[:, :, None]
        if self.visible is None:
            shape = (*self.slots.shape, self.used)
            keys = torch.arange(self.used, device=self.slots.device).expand(shape[0], 1, -1)
            visible = keys <= queries if self.causal else torch.ones(shape, dtype=torch.bool, device=keys.device)
        elif window is None:
            return self.visible
        else:
            assert self.layout is not None
            visible, keys = self.visible, self.layout.slot_positions(self.used)[:, None, :]
        return visible if window is None else visible & (keys > queries - window)


def prompt_plan(batch: int, length: int, device: torch.device) -> ForwardPlan:
    """A causal pass over right-padded prompts; padding is later overwritten and never seen before that."""
    slots = torch.arange(length, device=device).expand(batch, -1)
    return ForwardPlan(slots, slots, used=length, start=0, causal=True)


def tree_plan(
    tree: TokenTree,
    nodes: Int[Tensor, "batch new"],
    entries: Int[Tensor, "batch entry"],
    lengths: Int[Tensor, " batch"],
    longest: int,
    owed: Int[Tensor, " batch"] | None = None,
    num_owed: int = 0,
) -> ForwardPlan:
    """Plan for `nodes`, after the tree nodes `entries` that sit in the slots behind each row's committed `lengths`.

    `owed` committed tokens per row that this cache has not seen (at most `num_owed`) go in front, in the same forward.
    """
    batch, num_new = nodes.shape
    num_entries = entries.shape[1]
    base = lengths if owed is None else lengths + owed
    shown = torch.cat([entries, nodes], 1) if num_entries else nodes
    layout = TreeLayout(tree, shown, num_new, lengths, base, num_owed if owed is not None else 0)
    plan = ForwardPlan(
        slots=layout.slots[:, num_entries:],
        positions=layout.positions[:, num_entries:],
        used=longest + num_owed + num_entries + num_new,
        start=longest + num_entries if batch == 1 and owed is None else None,
        layout=layout,
        sees_all=batch == 1 and num_new == 1 and num_entries == 0 and num_owed == 0,
    )
    if owed is not None:
        _prepend_owed(plan, lengths, owed, num_owed)
    return plan


def _prepend_owed(plan: ForwardPlan, lengths: Tensor, owed: Tensor, num_owed: int) -> None:
    """A row that owes fewer tokens than another parks its padding behind its tree; a single row has no other."""
    order = torch.arange(num_owed, device=lengths.device)
    own = slots = lengths[:, None] + order
    if len(owed) > 1:
        behind = plan.slots[:, -1:] + 1 + order - owed[:, None]
        slots = torch.where(order < owed[:, None], own, behind)
    plan.slots = torch.cat([slots, plan.slots], 1)
    plan.positions = torch.cat([own, plan.positions], 1)


def place_of(nodes: Int[Tensor, "batch node"], among: Int[Tensor, "batch entry"]) -> Int[Tensor, "batch node"]:
    """Index of each node in `among`; `NO_NODE` where it is absent."""
    if not among.shape[1]:
        return torch.full_like(nodes, NO_NODE)
    if nodes.is_cpu:
        return torch.from_numpy(_place_on_host(nodes.numpy(), among.numpy()))
    same = (nodes[:, :, None] == among[:, None, :]) & (nodes != NO_NODE)[:, :, None]
    found, place = same.max(2)
    return place.masked_fill(~found, NO_NODE)


def _place_on_host(
    nodes: Int[np.ndarray, "batch node"], among: Int[np.ndarray, "batch entry"]
) -> Int[np.ndarray, "batch node"]:
    same = nodes[:, :, None] == among[:, None]
    found = same.any(2) & (nodes != NO_NODE)
    return np.where(found, same.argmax(2), NO_NODE)

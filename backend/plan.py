"""Where the tokens of one forward go in the cache and what each of them may see."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from backend.tree import NO_NODE, TokenTree


@dataclass
class ForwardPlan:
    """Slots, positions and visibility of the tokens of one forward.

    `used` slots of every row are read. `visible` None means that every query sees all of them; `causal` marks a
    prompt pass into an empty cache. `start` is the first slot where all rows write the same contiguous run.
    """

    slots: Int[Tensor, "batch query"]
    positions: Int[Tensor, "batch query"]
    used: int
    start: int | None = None
    causal: bool = False
    visible: Bool[Tensor, "batch query slot"] | None = None
    slot_positions: Int[Tensor, "batch slot"] | None = None  # needed by sliding windows only
    _masks: dict[tuple[int | None, int, torch.dtype], Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, groups: int, dtype: torch.dtype) -> Tensor:
        """Additive mask (batch, 1, groups * query, slot), built once per forward for each kind of layer."""
        key = (window, groups, dtype)
        if key not in self._masks:
            mask = torch.zeros(self._visible_within(window).shape, dtype=dtype, device=self.slots.device)
            mask.masked_fill_(~self._visible_within(window), torch.finfo(dtype).min)
            self._masks[key] = mask.repeat(1, groups, 1)[:, None]
        return self._masks[key]

    @property
    def windows(self) -> set[int]:
        """Sizes of the sliding windows that layers have asked for so far."""
        return {window for window, *_ in self._masks if window is not None}

    def _visible_within(self, window: int | None) -> Bool[Tensor, "batch query slot"]:
        """Windows are measured in positions, i.e. by depth in the tree, never by slot."""
        queries = self.positions[:, :, None]
        if self.visible is None:
            shape = (*self.slots.shape, self.used)
            keys = torch.arange(self.used, device=self.slots.device).expand(shape[0], 1, -1)
            visible = keys <= queries if self.causal else torch.ones(shape, dtype=torch.bool, device=keys.device)
        else:
            visible, keys = self.visible, self.slot_positions
            keys = keys[:, None, :] if keys is not None else None
        if window is None or keys is None:
            return visible
        return visible & (keys > queries - window)


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
    order = torch.arange(num_owed + num_entries + num_new, device=nodes.device)
    tree_slots = base[:, None] + order[: num_entries + num_new]
    node_slots = tree_slots[:, num_entries:]
    depths = tree.depths.gather(1, torch.cat([entries, nodes], 1).clamp(min=0))
    plan = ForwardPlan(
        slots=node_slots,
        positions=base[:, None] + depths[:, num_entries:],
        used=longest + num_owed + num_entries + num_new,
        start=longest + num_entries if batch == 1 and owed is None else None,
    )
    if batch == 1 and num_new == 1 and num_entries == 0 and num_owed == 0:
        plan.slot_positions = torch.arange(plan.used, device=nodes.device)[None]
        return plan
    seen = tree.is_ancestor(torch.cat([entries, nodes], 1), nodes)
    _show(plan, seen, tree_slots, base)
    plan.slot_positions = _slot_positions(plan.used, tree_slots, base[:, None] + depths)
    if owed is not None:
        _prepend_owed(plan, lengths, owed, order[:num_owed])
    return plan


def _show(plan: ForwardPlan, seen: Tensor, tree_slots: Tensor, base: Tensor) -> None:
    slot = torch.arange(plan.used, device=base.device)
    visible = (slot < base[:, None])[:, None, :].repeat(1, seen.shape[1], 1)
    visible.scatter_(2, tree_slots[:, None, :].expand(-1, seen.shape[1], -1), seen)
    visible[:, :, 0] |= ~seen.any(2)  # a padded query must see something finite
    plan.visible = visible


def _slot_positions(used: int, tree_slots: Tensor, tree_positions: Tensor) -> Tensor:
    positions = torch.arange(used, device=tree_slots.device).repeat(tree_slots.shape[0], 1)
    return positions.scatter_(1, tree_slots, tree_positions)


def _prepend_owed(plan: ForwardPlan, lengths: Tensor, owed: Tensor, order: Tensor) -> None:
    """Owed tokens see the prefix and each other causally; a row that owes fewer parks its padding behind its tree."""
    is_owed = order < owed[:, None]
    own = lengths[:, None] + order
    behind = plan.slots[:, -1:] + 1 + order - owed[:, None]
    slot = torch.arange(plan.used, device=lengths.device)
    visible = (slot <= own[:, :, None]) & is_owed[:, :, None]
    visible[:, :, 0] |= ~is_owed
    assert plan.visible is not None
    plan.slots = torch.cat([torch.where(is_owed, own, behind), plan.slots], 1)
    plan.positions = torch.cat([own, plan.positions], 1)
    plan.visible = torch.cat([visible, plan.visible], 1)


def place_of(nodes: Int[Tensor, "batch node"], among: Int[Tensor, "batch entry"]) -> Int[Tensor, "batch node"]:
    """Index of each node in `among`; `NO_NODE` where it is absent."""
    if not among.shape[1]:
        return torch.full_like(nodes, NO_NODE)
    same = (nodes[:, :, None] == among[:, None, :]) & (nodes != NO_NODE)[:, :, None]
    found, place = same.int().max(2)
    return place.masked_fill(found == 0, NO_NODE)

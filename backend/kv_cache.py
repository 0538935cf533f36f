"""One preallocated key-value buffer per model, with a length per row and compaction in place."""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import Cache

from backend.errors import TreebenchError
from backend.ops import Ops
from backend.plan import ForwardPlan
from backend.tree import NO_NODE


class LayerShape(NamedTuple):
    """Sizes of what one attention layer stores per token; keys and values may differ (MLA).

    `device` is where the layer computes, None where the model's inputs are. Of a shard, `heads` are its own.
    """

    heads: int
    key_size: int
    value_size: int
    device: torch.device | None = None


def devices_of(shapes: dict[int, LayerShape], default: torch.device) -> set[torch.device]:
    """Where the layers compute."""
    return {shape.device or default for shape in shapes.values()}


def is_spread(shapes: dict[int, LayerShape], inputs: torch.device) -> bool:
    """Whether some layer computes elsewhere than where the model's inputs are."""
    return devices_of(shapes, inputs) != {inputs}


class Provisional:
    """Whose tree nodes lie behind the prefix of a cache that drafts share, in the order of their slots."""

    def __init__(self) -> None:
        self._entries: list[tuple[object, Int[Tensor, "batch entry"]]] = []

    def seen_by(self, owner: object, none: Int[Tensor, "batch 0"]) -> Int[Tensor, "batch entry"]:
        """The nodes of all slots, `NO_NODE` where they are somebody else's."""
        columns = [nodes if whose is owner else torch.full_like(nodes, NO_NODE) for whose, nodes in self._entries]
        return torch.cat([none, *columns], 1)

    def add(self, owner: object, nodes: Int[Tensor, "batch entry"]) -> None:
        self._entries.append((owner, nodes))

    def clear(self) -> None:
        self._entries.clear()


class KVCache:
    """Row b holds its committed tokens in slots [0, lengths[b]); tree nodes of the current step lie behind them.

    Slots past those are garbage that no query sees, kept finite because a masked key still enters as 0 x value.
    `longest` bounds `lengths` on the host without a device sync; `settle` makes it exact again. A single row writes
    contiguous runs at its exact length, so there `longest` settles by itself when a commit has made it inexact.
    """

    def __init__(
        self, shapes: dict[int, LayerShape], batch: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.capacity = capacity
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        self._longest = 0
        self._exact = True
        self.provisional = Provisional()
        self.is_spread = is_spread(shapes, device)
        rows = {place: torch.arange(batch, device=place)[:, None] for place in devices_of(shapes, device)}
        self.rows = {layer: rows[shape.device or device] for layer, shape in shapes.items()}
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.stacks: list[Tensor] = []  # (layers, batch, heads, slot, size): one per distinct shape and device
        owners = [(self.keys, i, s.heads, s.key_size, s.device or device) for i, s in shapes.items()]
        owners += [(self.values, i, s.heads, s.value_size, s.device or device) for i, s in shapes.items()]
        for heads, size, place in sorted({owner[2:] for owner in owners}, key=str):
            members = [owner[:2] for owner in owners if owner[2:] == (heads, size, place)]
            stack = torch.zeros(len(members), batch, heads, capacity, size, dtype=dtype, device=place)
            self.stacks.append(stack)
            for (table, layer), buffer in zip(members, stack.unbind(0), strict=True):
                table[layer] = buffer

    @property
    def longest(self) -> int:
        if not self._exact and self.lengths.shape[0] == 1:
            self.settle()
        return self._longest

    def start(self, lengths: Int[Tensor, " batch"]) -> None:
        """Begin new sequences: slots below `lengths` count as committed, whatever was there before is forgotten."""
        self.lengths.copy_(lengths)
        self.settle()

    def extend(self, count: Int[Tensor, " batch"]) -> None:
        """Commit each row's next `count` slots as they are."""
        self.lengths += count
        self.settle()

    def settle(self) -> None:
        self._longest = int(self.lengths.max())
        self._exact = True

    def require(self, used: int) -> None:
        if used > self.capacity:
            raise TreebenchError(
                f"the KV cache holds {self.capacity} tokens per sequence but {used} are needed; "
                "raise backend.tree_slots or shorten the prompts"
            )

    def write(self, layer: int, keys: Tensor, values: Tensor, plan: ForwardPlan) -> tuple[Tensor, Tensor]:
        """Store (batch, head, query, size) at the plan's slots; return the used part of both buffers."""
        plan = plan.on(keys.device) if self.is_spread else plan
        for buffer, new in ((self.keys[layer], keys), (self.values[layer], values)):
            if plan.start is not None:
                buffer[:, :, plan.start : plan.start + new.shape[2]] = new
            else:
                buffer[self.rows[layer], :, plan.slots] = new.transpose(1, 2)
        return self.keys[layer][:, :, : plan.used], self.values[layer][:, :, : plan.used]

    def keep(self, places: Int[Tensor, "batch path"], ops: Ops) -> None:
        """Commit the tree entries at `places` (root first, `NO_NODE`-padded): move them behind the prefix, in place."""
        for stack in self.stacks:
            ops.keep(stack, places.to(stack.device), self.lengths.to(stack.device))
        self.lengths += (places != NO_NODE).sum(1)
        self._longest += places.shape[1]
        self._exact = False


class PlannedCache(Cache):
    """What a transformers model sees as its cache during one forward: writes go where the plan says."""

    def __init__(self, cache: KVCache, plan: ForwardPlan) -> None:
        self.layers = []
        self.cache = cache
        self.plan = plan

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object):
        return self.cache.write(layer_idx, key_states, value_states, self.plan)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0  # positions are always passed explicitly

    @property
    def is_compileable(self) -> bool:
        return False

"""What algorithms that weigh cost share: cost curves by context bucket, and what they know about their sequences."""

from typing import Any

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from backend.arrays import on_host
from backend.costs import CostModel, Seconds
from backend.tree import Accepted


class Prices:
    """Seconds of 1, 2, ... tokens per row, looked up once per batch size and context bucket.

    A context counts as the end of its bucket of `bucket` tokens, of which there are `buckets`; longer ones count as
    the last (CAST, section 3, where a printed `max` must read `min`).
    """

    def __init__(self, costs: CostModel, drafter: str, bucket: int, buckets: int) -> None:
        self.costs = costs
        self.drafter = drafter
        self.bucket = bucket
        self.buckets = buckets
        self._known: dict[tuple[str, int, int, Any], Any] = {}

    def select(self, context: int | float) -> int:
        return (min(int(context) // self.bucket, self.buckets - 1) + 1) * self.bucket

    def verify(self, batch: int, context: int | float, widest: int) -> Seconds:
        """Element k - 1: one target forward of k tokens per row."""
        key = ("verify", batch, self.select(context), widest)
        if key not in self._known:
            self._known[key] = self.costs.verify_seconds(batch, np.arange(1, widest + 1), key[2])
        return self._known[key]

    def draft(self, batch: int, context: int | float, widest: int) -> Seconds:
        """Element k - 1: one drafted level of k nodes per row."""
        key = ("draft", batch, self.select(context), widest)
        if key not in self._known:
            self._known[key] = self.costs.draft_seconds(self.drafter, batch, np.arange(1, widest + 1), key[2])
        return self._known[key]

    def draft_in_steps(self, batch: int, context: int | float, widest: int) -> list[float]:
        """As `draft`, in target forwards of one token."""
        key = ("draft in steps", batch, self.select(context), widest)
        if key not in self._known:
            self._known[key] = (self.draft(batch, context, widest) / self.verify(batch, context, 1)[0]).tolist()
        return self._known[key]

    def step(self, batch: int, context: int | float, widest: int) -> Seconds:
        """Element k - 1: everything of a step that verifies k tokens per row but its draft levels."""
        key = ("step", batch, self.select(context), widest)
        if key not in self._known:
            overhead = self.costs.overhead_seconds(self.drafter, batch, np.arange(1, widest + 1))
            self._known[key] = self.verify(batch, context, widest) + overhead
        return self._known[key]

    def swing(self, batch: int, context: int | float, widest: int, more: int) -> float:
        """The most by which two of these steps differ that are no more than `more` tokens per row apart."""
        key = ("swing", batch, self.select(context), (widest, more))
        if key not in self._known:
            step = self.step(batch, context, widest)
            apart = range(1, min(more, widest - 1) + 1)
            self._known[key] = max((float(np.abs(step[k:] - step[:-k]).max()) for k in apart), default=0.0)
        return self._known[key]


class Sequences:
    """Committed length of each row and whether it still decodes, on the host.

    `context` is the mean length of the rows that do; a row that accepts not even its root has finished.
    """

    def __init__(self) -> None:
        self._note(np.zeros(0), np.zeros(0), np.zeros(0, dtype=bool))

    def start(self, lengths: Int[Tensor, " batch"]) -> None:
        self._begin(on_host(lengths).astype(np.float64))

    def require(self, batch: int) -> bool:
        """Rows of unknown length begin at 0; True if nothing was known about this batch."""
        unknown = len(self.lengths) != batch
        if unknown:
            self._begin(np.zeros(batch))
        return unknown

    def observe(self, accepted: Accepted) -> None:
        emitted = on_host(accepted.num_nodes).astype(np.float64)
        self._note(self.lengths + emitted, emitted, emitted > 0)

    def _begin(self, lengths: NDArray[np.float64]) -> None:
        self._note(lengths, np.zeros(len(lengths)), np.ones(len(lengths), dtype=bool))

    def _note(self, lengths: NDArray[np.float64], emitted: NDArray[np.float64], active: NDArray[np.bool_]) -> None:
        self.lengths, self.emitted, self.active = lengths, emitted, active
        self.all_active = bool(active.all())
        decoding = lengths if self.all_active or not active.any() else lengths[active]
        self.context = float(decoding.sum()) / max(1, len(decoding))

    def mean(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Over the rows that still decode, (1, ...); over all rows once none does."""
        if len(values) == 1:
            return values
        chosen = values if self.all_active or not self.active.any() else values[self.active]
        return chosen.sum(0, keepdims=True) / len(chosen)

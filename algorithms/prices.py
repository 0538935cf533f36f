"""What algorithms that weigh cost share: cost curves by context bucket, and what they know about their sequences."""

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
        self._known: dict[tuple[str, int, int, int], Seconds] = {}

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

    def step(self, batch: int, context: int | float, widest: int) -> Seconds:
        """Element k - 1: everything of a step that verifies k tokens per row but its draft levels."""
        key = ("step", batch, self.select(context), widest)
        if key not in self._known:
            overhead = self.costs.overhead_seconds(self.drafter, batch, np.arange(1, widest + 1))
            self._known[key] = self.verify(batch, context, widest) + overhead
        return self._known[key]


class Sequences:
    """Committed length of each row and whether it still decodes, on the host.

    `context` is the mean length of the rows that do; a row that accepts not even its root has finished. `only_last`:
    means are taken over the rows that have emitted least, for which the others will have to wait.
    """

    def __init__(self, only_last: bool = False) -> None:
        self.only_last = only_last
        self._begin(np.zeros(0))

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
        self._count(self.is_counted & (emitted > 0), emitted > 0)  # those that the step was made for
        self.realised = self.mean(emitted)
        self._note(self.lengths + emitted, emitted, emitted > 0)

    def _begin(self, lengths: NDArray[np.float64]) -> None:
        self.began = self.realised = lengths
        self._note(lengths, np.zeros(len(lengths)), np.ones(len(lengths), dtype=bool))

    def _note(self, lengths: NDArray[np.float64], emitted: NDArray[np.float64], active: NDArray[np.bool_]) -> None:
        self.lengths, self.emitted, self.active = lengths, emitted, active
        self._count(active)
        decoding = lengths if self.counts_all else lengths[self.is_counted]
        self.context = float(decoding.sum()) / max(1, len(decoding))
        if self.only_last and active.any():
            done = lengths - self.began
            self._count(active & (done == done[active].min()))

    def _count(self, *choices: NDArray[np.bool_]) -> None:
        """The first of these choices of rows that is not empty; all rows if every one is."""
        everyone = np.ones(len(choices[0]), dtype=bool)
        self.is_counted = next((rows for rows in choices if rows.any()), everyone)
        self.counts_all = bool(self.is_counted.all())

    def mean(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Over the rows that still decode, (1, ...), or the last of them; over all rows once none does."""
        if len(values) == 1:
            return values
        chosen = values if self.counts_all else values[self.is_counted]
        return chosen.sum(0, keepdims=True) / len(chosen)

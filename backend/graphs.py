"""CUDA graphs of tree forwards: one per batch size and bucket of widths, replayed instead of hundreds of launches.

A graph reads the lengths of its rows on the device, so one serves prefixes of every length. What it cannot serve (a
prompt, a width beyond the largest bucket, one graph too many) runs eagerly.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from backend.kv_cache import KVCache
from backend.plan import ForwardPlan, TreeLayout
from backend.tree import NO_NODE

BUCKETS = (1, 8, 16, 32, 64, 128, 256)
MAX_GRAPHS = 64  # each holds a logits buffer; drafters meet one shape per level
WARM_UPS = 2  # Triton compiles at the first launch, which a capture must not see

Forward = Callable[[Tensor, ForwardPlan], Tensor]
Capture = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]


class Shape(NamedTuple):
    """What is fixed in a graph."""

    batch: int
    num_owed: int
    num_shown: int
    num_nodes: int


@dataclass(frozen=True)
class Captured:
    """A graph, the tensors that it reads, and its logits, which the next replay overwrites."""

    replay: Callable[[], None]
    inputs: list[Tensor]
    logits: Tensor


class Graphs:
    """The graphs of one model. They point into its cache, so another cache begins with none."""

    def __init__(self, words: Callable[[TreeLayout], Tensor], capture: Capture) -> None:
        self.words = words
        self.capture = capture
        self.captured: dict[Shape, Captured] = {}
        self.cache: KVCache | None = None
        self.num_eager = 0

    def padded(self, nodes: Int[Tensor, "batch new"]) -> Int[Tensor, "batch bucket"]:
        """The nodes, filled up with `NO_NODE` to the next bucket; as they are beyond the largest."""
        bucket = next((bucket for bucket in BUCKETS if bucket >= nodes.shape[1]), nodes.shape[1])
        return F.pad(nodes, (0, bucket - nodes.shape[1]), value=NO_NODE)

    def run(
        self, forward: Forward, tokens: Int[Tensor, "batch query"], plan: ForwardPlan, cache: KVCache
    ) -> Float[Tensor, "batch kept vocab"]:
        """`forward`'s logits. They stay valid until the next run of the same shape."""
        if cache is not self.cache:
            self.captured, self.cache = {}, cache
        layout = plan.layout
        if layout is None or layout.num_nodes not in BUCKETS:
            return self._eagerly(forward, tokens, plan)
        shape = Shape(len(tokens), layout.num_owed, layout.shown.shape[1], layout.num_nodes)
        if shape not in self.captured:
            if len(self.captured) >= MAX_GRAPHS:
                return self._eagerly(forward, tokens, plan)
            self.captured[shape] = self._capture(forward, tokens, plan, layout, cache.capacity)
        graph = self.captured[shape]
        for static, value in zip(graph.inputs, self._inputs(tokens, plan, layout), strict=True):
            static.copy_(value)
        graph.replay()
        return graph.logits

    def _eagerly(self, forward: Forward, tokens: Tensor, plan: ForwardPlan) -> Tensor:
        self.num_eager += 1
        return forward(tokens, plan)

    def _inputs(self, tokens: Tensor, plan: ForwardPlan, layout: TreeLayout) -> list[Tensor]:
        words = self.words(layout)
        return [tokens, plan.slots, plan.positions, layout.lengths, layout.base, layout.positions, words]

    def _capture(
        self, forward: Forward, tokens: Tensor, plan: ForwardPlan, layout: TreeLayout, capacity: int
    ) -> Captured:
        inputs = [value.clone(memory_format=torch.contiguous_format) for value in self._inputs(tokens, plan, layout)]
        tokens, slots, positions, lengths, base, tree_positions, words = inputs
        static_layout = replace(layout, lengths=lengths, base=base, words=words)
        static_layout.positions = tree_positions
        static = ForwardPlan(slots, positions, used=capacity, layout=static_layout)
        replay, logits = self.capture(lambda: forward(tokens, static))
        return Captured(replay, inputs, logits)


def capture_on_gpu(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Warm up on a side stream, then record. Has never run: there was no GPU to write it on."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = run()
    return graph.replay, logits

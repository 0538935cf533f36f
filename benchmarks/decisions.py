"""What does deciding by cost add to growing a tree? Breadth, depth and size of 60-node trees, batch 1.

Run `OMP_NUM_THREADS=1 python -m benchmarks.decisions`. Processor time, so that a busy machine shows less. Time inside
the growth steps that EAGLE-2 needs as well (drafting, adding nodes, handing the draft over) is left out; what remains
is the decisions and their bookkeeping.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from algorithms.base import TreeAlgorithm
from algorithms.growth import Growth
from algorithms.registry import create
from backend.costs import Seconds, Widths
from backend.random import RandomStream
from backend.tree import Accepted, Draft, TokenTree
from benchmarks.growth import CONF, StubDrafter, grow

SIXTY = {  # settings that make every step decide about six levels and end at 60 nodes
    "cast": {"thresholds": [0.1, 0.1, 0.01], "budget": 60, "max_depth": 6},
    "cast_rate": {"budget": 60, "max_depth": 6},
}


class Cheap:
    """Costs at which a tree of 60 nodes pays."""

    def verify_seconds(self, batch: int, width: Widths, context: int) -> Seconds:
        return 1e-2 + 1e-6 * np.asarray(width, dtype=float)

    def draft_seconds(self, drafter: str, batch: int, width: Widths, context: int) -> Seconds:
        return 1e-6 + 1e-9 * np.asarray(width, dtype=float)

    def overhead_seconds(self, drafter: str | None, batch: int, width: Widths) -> Seconds:
        return 0.0 * np.asarray(width, dtype=float)


class Growing:
    """Seconds inside the shared growth steps."""

    def __init__(self) -> None:
        self.seconds = 0.0
        for step in ("__init__", "expand", "draft"):
            setattr(Growth, step, self._timed(getattr(Growth, step)))

    def _timed(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            start = time.thread_time()
            result = step(*arguments)
            self.seconds += time.thread_time() - start
            return result

        return timed


def build(name: str) -> TreeAlgorithm:
    values: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    options = {key: value for key, value in values.items() if key not in ("name", "defaults")} | SIXTY[name]
    return create(name, StubDrafter(seed=0), options, Cheap())


@torch.inference_mode()
def measure(algorithm: TreeAlgorithm, growing: Growing, steps: int) -> tuple[list[float], list[float], Draft]:
    """Milliseconds per step of deciding and of observing, in ascending order, and the last tree."""
    deciding, observing = [], []
    zero = torch.zeros(1, dtype=torch.int64)
    algorithm.start(zero + 200)
    draft = grow(algorithm, steps)
    for step in range(steps):
        tree, random = TokenTree.root(zero), RandomStream.keyed(0, zero, zero + step)
        growing.seconds, start = 0.0, time.thread_time()
        draft = algorithm.grow(tree, random)
        decided = time.thread_time()
        deciding.append(1000 * (decided - start - growing.seconds))
        algorithm.observe(draft, Accepted(draft.nodes[:, :1], draft.tree.tokens[:, 0]))
        observing.append(1000 * (time.thread_time() - decided))
    return sorted(deciding[steps // 4 :]), sorted(observing[steps // 4 :]), draft


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    growing = Growing()
    table = Table("algorithm", "nodes", "levels", "deciding ms", "fastest tenth ms", "observing ms")
    for name in SIXTY:
        deciding, observing, draft = measure(build(name), growing, arguments.steps)
        figures = (median(deciding), deciding[len(deciding) // 10], median(observing))
        table.add_row(name, str(draft.nodes.shape[1]), str(draft.tree.height), *(f"{figure:.3f}" for figure in figures))
    Console().print(table)


if __name__ == "__main__":
    main()

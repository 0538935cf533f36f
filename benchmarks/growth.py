"""What does growing a tree cost besides its draft forwards? One row per policy and tree size, batch 1.

Run `OMP_NUM_THREADS=1 python -m benchmarks.growth`. The drafter is a stub that hands out laws made beforehand over a
small vocabulary; the column `growth` leaves out its answers and what runs over a vocabulary (top-k, draws and their
random numbers). It counts all else in a step: the tree that every draft call is handed, the choices, and the draft.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from jaxtyping import Float, Int
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor

import algorithms.growth
from algorithms.base import TreeAlgorithm
from algorithms.growth import Growth
from algorithms.registry import create
from backend.random import RandomStream
from backend.tree import Accepted, Draft, TokenTree, Verified

CONF = Path(__file__).parent.parent / "conf" / "algorithm"
VOCAB, NUM_LAWS = 128, 1024


class StubDrafter:
    """Answers at once, with laws about as peaked as a good drafter's: Zipf-like, over few tokens."""

    name = "stub"

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.rand(NUM_LAWS, VOCAB, generator=generator).argsort(1) + 1
        self.log_probs = (-1.2 * noise.float().log()).log_softmax(1)
        self.calls = 0

    def allocate(self, batch: int, capacity: int) -> None: ...

    def prefill(self, prompts: Tensor, lengths: Tensor) -> None: ...

    def expand(self, tree: TokenTree, nodes: Int[Tensor, "batch new"]) -> Float[Tensor, "batch new vocab"]:
        first = self.calls * 37 % (NUM_LAWS - nodes.shape[1])
        self.calls += 1
        return self.log_probs[None, first : first + nodes.shape[1]]

    def commit(self, tree: TokenTree, accepted: Accepted, verified: Verified) -> None: ...


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and what differs from the YAML values."""
    for budget in (60, 128, 256, 512):
        yield "eagle2", {"total_tokens": budget}
        yield "dyspec", {"budget": budget}
        yield "sequoia", {"budget": budget}
        yield "opt_tree", {"budget": budget}


def build(name: str, options: dict[str, Any], drafter: StubDrafter) -> TreeAlgorithm:
    run = {"top_k": None, "top_p": None, "algorithm": OmegaConf.load(CONF / f"{name}.yaml")}  # what options refer to
    values: Any = OmegaConf.to_container(OmegaConf.create(run), resolve=True)
    chosen = {key: value for key, value in values["algorithm"].items() if key not in ("name", "defaults")}
    return create(name, drafter, chosen | options)


def grow(algorithm: TreeAlgorithm, step: int) -> Draft:
    zero = torch.zeros(1, dtype=torch.int64)
    return algorithm.grow(TokenTree.root(zero), RandomStream.keyed(0, zero, zero + step))


class Proposing:
    """Seconds spent on draft calls, top-k and draws: what the figures leave out."""

    def __init__(self) -> None:
        self.seconds = 0.0
        for owner, step in ((algorithms.growth, "top_k"), (Growth, "_draw"), (StubDrafter, "expand")):
            setattr(owner, step, self._timed(getattr(owner, step), 1))
        Growth._ranks = self._timed(Growth._ranks, -1)  # within `_draw`, but over nodes

    def _timed(self, step: Callable[..., Any], share: int) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = step(*arguments)
            self.seconds += share * (time.perf_counter() - start)
            return result

        return timed


@torch.inference_mode()
def measure(algorithm: TreeAlgorithm, steps: int, proposing: Proposing) -> tuple[list[float], list[float], Draft]:
    """Milliseconds per step in ascending order, whole and without proposing, after a warm-up."""
    draft = [grow(algorithm, step) for step in range(steps // 4 + 1)][-1]
    whole, rest = [], []
    for step in range(steps):
        proposing.seconds, start = 0.0, time.perf_counter()
        grow(algorithm, step)
        whole.append(1000 * (time.perf_counter() - start))
        rest.append(whole[-1] - 1000 * proposing.seconds)
    return sorted(whole), sorted(rest), draft


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", help="one algorithm")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    proposing = Proposing()
    table = Table("algorithm", "nodes", "draft calls", "whole step ms", "growth ms", "fastest tenth ms", "us per node")
    for name, options in cases():
        if arguments.only not in (None, name):
            continue
        drafter = StubDrafter(seed=0)
        whole, rest, draft = measure(build(name, options, drafter), arguments.steps, proposing)
        calls = drafter.calls / (arguments.steps + arguments.steps // 4 + 1)
        figures = (median(whole), median(rest), rest[len(rest) // 10], 1000 * median(rest) / draft.nodes.shape[1])
        table.add_row(name, str(draft.nodes.shape[1]), f"{calls:.1f}", *(f"{figure:.3f}" for figure in figures))
    Console().print(table)


if __name__ == "__main__":
    main()

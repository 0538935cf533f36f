"""Seconds of the kernels and of the same operations in torch, on a CUDA device. Never run yet: no GPU was there."""

from collections.abc import Callable
from importlib.util import find_spec

import torch
from triton.testing import do_bench

from backend.acceptance import NumericEvents
from backend.ops.select import TORCH, create_ops
from backend.plan import tree_plan
from backend.random import RandomStream
from backend.sampling import Sampler
from backend.tree import Draft, Proposal, TokenTree
from benchmarks.kernels import Attention, Compaction, Rejection

DEVICE = torch.device("cuda", 0)
COPIED = 1 << 30  # bytes


def copy_limit() -> Callable[[float], float]:
    """Seconds in which a plain copy moves so many bytes, reads and writes together."""
    source = torch.empty(COPIED, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    per_byte = median_seconds(lambda: target.copy_(source)) / (2 * COPIED)
    return lambda moved: moved * per_byte


def median_seconds(run: Callable[[], object]) -> float:
    milliseconds = do_bench(run, return_mode="median")
    assert isinstance(milliseconds, float)
    return milliseconds / 1e3


def seconds(case: object) -> list[float | None]:
    """Medians of the kernel, of torch (attention: its SDPA), and of FlashInfer where it is installed and has it."""
    make = {Attention: attention, Compaction: compaction, Rejection: rejection}[type(case)]
    found: list[float | None] = [median_seconds(make(case, ops)) for ops in (create_ops("triton", DEVICE), TORCH)]
    has_third = isinstance(case, Attention) and find_spec("flashinfer") is not None
    return [*found, median_seconds(make(case, create_ops("flashinfer", DEVICE))) if has_third else None]


def star(batch: int, width: int) -> TokenTree:
    """A root with children: the shape of a tree changes no byte that a kernel moves."""
    tree = TokenTree.root(torch.zeros(batch, dtype=torch.int64, device=DEVICE))
    tokens = torch.arange(1, width, device=DEVICE).expand(batch, -1)
    return tree.add(torch.zeros_like(tokens), tokens, torch.zeros_like(tokens).float()) if width > 1 else tree


def attention(case: Attention, ops) -> Callable[[], object]:
    tree = star(case.batch, case.width)
    nodes = torch.arange(case.width, device=DEVICE).expand(case.batch, -1)
    lengths = torch.full((case.batch,), case.prefix, device=DEVICE)
    plan = tree_plan(tree, nodes, nodes[:, :0], lengths, case.prefix)
    query = torch.randn(case.batch, case.heads, case.width, case.size, device=DEVICE, dtype=case.dtype)
    cache = torch.randn(2, case.batch, case.kv_heads, plan.used, case.size, device=DEVICE, dtype=case.dtype)
    return lambda: ops.attention(query, cache[0], cache[1], plan, case.size**-0.5, None, None, None)


def compaction(case: Compaction, ops) -> Callable[[], object]:
    shape = (2 * case.layers, case.batch, case.kv_heads, 256, case.size)
    stack = torch.randn(shape, device=DEVICE, dtype=case.dtype)
    places = torch.arange(case.kept + 1, device=DEVICE).mul(3).expand(case.batch, -1)
    lengths = torch.full((case.batch,), 64, device=DEVICE)
    return lambda: ops.keep(stack, places, lengths)


def rejection(case: Rejection, ops) -> Callable[[], object]:
    tree = star(case.batch, case.width)
    nodes = torch.arange(case.width, device=DEVICE).expand(case.batch, -1)
    laws = torch.full((case.batch, case.width, case.vocab), 1 / case.vocab, device=DEVICE)
    draft = Draft(tree, nodes, Proposal.WITHOUT_REPLACEMENT, laws)
    logits = torch.randn(case.batch, case.width, case.vocab, device=DEVICE)
    rows = torch.arange(case.batch, device=DEVICE)
    random, events = RandomStream.keyed(0, rows, rows), NumericEvents()
    return lambda: ops.walk(draft, logits, Sampler(1.0), random, events)

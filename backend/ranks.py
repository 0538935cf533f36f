"""Processes that hold one target together, a shard of it each: torchrun starts them, and all do the same thing.

The first one (rank 0) composes, prints and writes; whatever could differ between them (the clock) is its word.
"""

import os
from datetime import timedelta
from typing import Any

from backend.errors import TreebenchError

PATIENCE = timedelta(hours=1)  # of a rank for the others, while one of them still reads its shard


def num_ranks() -> int:
    """How many processes torchrun started; 1 without it. Loads nothing."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    return int(os.environ.get("RANK", 0)) if num_ranks() > 1 else 0


def join() -> None:
    """Meet the other ranks, once. Numbers on the host go through gloo, those on a GPU through NCCL."""
    import torch  # a sweep whose points are measured elsewhere reads only the two functions above
    import torch.distributed as dist

    if dist.is_initialized():
        return
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    local = int(os.environ.get("LOCAL_RANK", 0))
    if gpus and local >= gpus:
        raise TreebenchError(f"torchrun started process {local + 1} on a machine with {gpus} GPUs: start one per GPU")
    if gpus:
        torch.cuda.set_device(local)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        line = " ".join(str(error).split())
        raise TreebenchError(f"the ranks do not meet ({line}): start the command with torchrun") from error


def leave() -> None:
    """Part from the other ranks, after everything that all of them do."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def word_of_first(value: Any) -> Any:
    """Rank 0's value, on every rank; the value itself where there is but one process."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def seconds_of_first(seconds: float) -> float:
    """Rank 0's reading of its clock, so that no decision that depends on time can differ between ranks."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        return seconds
    reading = torch.tensor([seconds], dtype=torch.float64)
    dist.broadcast(reading, src=0)
    return reading.item()


def require_same(value: Any, what: str) -> None:
    """Raises TreebenchError, on all ranks, if they do not hold the same `value`."""
    import torch.distributed as dist

    if dist.is_initialized():
        values = [None] * dist.get_world_size()
        dist.all_gather_object(values, value)
        if any(other != values[0] for other in values):
            raise TreebenchError(f"the ranks disagree about {what}: their copies of the computation drifted apart")

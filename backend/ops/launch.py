"""Where kernels may run, and what they are told about the device. Importing this module imports Triton."""

from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from backend.errors import TreebenchError

OLDEST = (8, 0)  # compute capability: bf16 tensor cores and asynchronous copies
INTERPRETED_PROCESSORS = 4


@triton.jit
def _probe():
    return


IS_INTERPRETED = isinstance(_probe, InterpretedFunction)


def check_device(device: torch.device) -> None:
    """Refuse, in one line, a device that the kernels cannot run on."""
    if device.type == "cpu" and not IS_INTERPRETED:
        raise TreebenchError(
            "backend.ops=triton needs a GPU: use backend.ops=torch, or set TRITON_INTERPRET=1 (slow, for tests)"
        )
    if device.type == "cuda":
        check_capability(torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))
    elif device.type != "cpu":
        raise TreebenchError(f"backend.ops=triton does not run on {device.type}: use backend.ops=torch")


def check_capability(name: str, capability: tuple[int, int]) -> None:
    if capability < OLDEST:
        found = ".".join(map(str, capability))
        raise TreebenchError(
            f"{name} has compute capability {found}, but the kernels need 8.0 (A100) or newer: use backend.ops=torch"
        )


@lru_cache(maxsize=16)
def num_processors(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETED_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def launch(kernel: Any, grid: tuple[int, ...], tensor: Tensor, *arguments: Any, **options: Any) -> None:
    """Start a kernel where its first argument lies: with a model on several GPUs that need not be the current one."""
    with torch.cuda.device_of(tensor):
        kernel[grid](tensor, *arguments, **options)


def lanes_for(size: int) -> int:
    """The width of a tile that holds `size` elements: a power of two, and what a matrix product needs."""
    return max(16, 1 << (size - 1).bit_length())

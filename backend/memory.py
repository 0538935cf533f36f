"""The host's allocator, and running out of memory as an outcome with a name: which batch and width asked for more."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from backend.errors import TreebenchError

CPU_ALLOCATOR = "DefaultCPUAllocator"  # PyTorch raises a plain RuntimeError where the host has no more

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt


def keep_freed_memory() -> None:
    """Let glibc reuse what a step has freed: else every large tensor is taken anew from the kernel, page by page."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


class OutOfMemory(TreebenchError):
    """The device or the host has less memory than the point needs."""


@contextmanager
def memory_of_forward(batch: int, width: int) -> Iterator[None]:
    """A forward of `width` tokens in each of `batch` rows; raises OutOfMemory with the two."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        raise OutOfMemory(f"out of memory in a forward of batch {batch}, width {width}: {first_line(error)}") from error


def ran_out(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or CPU_ALLOCATOR in str(error)


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

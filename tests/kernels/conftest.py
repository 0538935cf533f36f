"""Kernels run on CPU tensors in Triton's interpreter; with TREE_DEVICE=cuda the same tests run them compiled."""

import pytest
import torch
from triton.runtime.interpreter import InterpretedFunction

from backend.ops.launch import IS_INTERPRETED

_call = InterpretedFunction.__call__
_patched: set[object] = set()


def _call_quickly(self, *args, **kwargs):
    """The interpreter patches the language anew for each call inside a kernel.

    Our functions need no more than the kernel's own patch; those of the language itself are never unpatched.
    """
    if self.fn.__module__.startswith("backend.") or self.fn in _patched:
        return self.rewrite()(*args, **kwargs)
    _patched.add(self.fn)
    return _call(self, *args, **kwargs)


@pytest.fixture(autouse=True, scope="session")
def quick_interpreter():
    with pytest.MonkeyPatch.context() as patch:
        if IS_INTERPRETED:
            patch.setattr(InterpretedFunction, "__call__", _call_quickly)
        yield


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield

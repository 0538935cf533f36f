"""Makes the constants that production code creates exact, so that exact elements can be stored in them."""

from collections.abc import Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from .rational import ExactTensor, numbers_of


class ExactFactories(TorchDispatchMode):
    """Within it, zeros, ones and constants are born exact, so that exact elements can be stored in them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func._schema.name not in _FACTORIES or isinstance(made, ExactTensor) or not made.is_floating_point():
            return made
        return ExactTensor(numbers_of(made), made.dtype)


_FACTORIES = frozenset(
    f"aten::{name}" for name in ("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full")
)

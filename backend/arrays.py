"""Small tensors as arrays on the host, where a tiny step costs least."""

import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
from jaxtyping import Int, Shaped
from numba import njit
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def compiled(loop: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Machine code of a loop over arrays: calling it costs as much as one operation of NumPy.

    The first call with new types of arguments compiles, for about a second, and keeps the code on disk: beside the
    source, in the user's cache, or in `NUMBA_CACHE_DIR`. Annotations are for the reader; nothing checks them.
    """
    jit, plain = cast(Any, njit), inspect.unwrap(loop)
    try:
        return jit(plain, cache=True)
    except RuntimeError:  # none of these places can be written
        return jit(plain)


def pick(
    values: Shaped[np.ndarray, "#row place *rest"], places: Int[np.ndarray, "#row picked"]
) -> Shaped[np.ndarray, "row picked *rest"]:
    """Each row's values at its places, a single row standing for all; one of values in a third of indexing's time."""
    if len(values) == 1:
        return values[0].take(places, axis=0)
    return values[np.arange(len(values))[:, None], places]


def on_host(values: Tensor) -> np.ndarray:
    """Shares memory with a tensor of the CPU; waits for any other device."""
    return values.numpy(force=values.requires_grad or not values.is_cpu)

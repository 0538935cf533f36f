"""A float tensor whose elements are exact: fractions, or logarithms of fractions.

Elements are numbers of a pool, so that an operation that only moves data runs on the numbers and arithmetic is done
once per distinct operands. What cannot be done exactly becomes an ordinary float, which `is_exact` tells apart.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cmp_to_key
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from .numbers import (
    ARITHMETIC,
    VALUES,
    Number,
    as_number,
    compare,
    cumsum_of,
    log_of,
    number_of,
    softmax_of,
    sum_of,
)


class ExactTensor(Tensor):
    """Made by `exact`; passes for a float tensor with the production code and its shape checks."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor, dtype: torch.dtype = torch.float32) -> "ExactTensor":
        made = Tensor._make_wrapper_subclass(cls, numbers.shape, strides=numbers.stride(), dtype=dtype)
        made.numbers = numbers
        return made

    def values(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The elements, as an array of objects."""
        flat = np.empty(self.numbers.numel(), dtype=object)
        flat[:] = [VALUES[number] for number in self.numbers.flatten().tolist()]
        return flat.reshape(self.numbers.shape)

    def floats(self) -> Tensor:
        flat = [float(VALUES[number]) for number in self.numbers.flatten().tolist()]
        return torch.tensor(flat, dtype=self.dtype).reshape(self.numbers.shape)

    def numpy(self, *, force: bool = False) -> np.ndarray:
        return self.floats().numpy()

    def tolist(self) -> Any:
        return self.floats().tolist()

    def __repr__(self, **_: Any) -> str:
        return f"ExactTensor({self.values().tolist()})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


def is_exact(tensor: Tensor) -> bool:
    """Whether every element is a fraction."""
    if not isinstance(tensor, ExactTensor):
        return False
    return all(isinstance(VALUES[number], Fraction) for number in tensor.numbers.unique().tolist())


def _elementwise(function: Callable[..., Any], *operands: Any) -> Tensor:
    """Once per distinct operands; the result is exact numbers, or bools for a comparison."""
    arrays = np.broadcast_arrays(*[numbers_of(operand).numpy() for operand in operands])
    keys = arrays[0].astype(np.int64)
    for array in arrays[1:]:
        keys = keys * len(VALUES) + array
    _, first, places = np.unique(keys, return_index=True, return_inverse=True)
    distinct = zip(*[array.reshape(-1)[first].tolist() for array in arrays], strict=True)
    results = [_result(function, operands) for operands in distinct]
    if results and isinstance(results[0], bool):
        return torch.from_numpy(np.array(results)[places].reshape(keys.shape))
    return ExactTensor(torch.from_numpy(np.array(results, dtype=np.int64)[places].reshape(keys.shape)))


_KNOWN: dict[Any, dict[Any, Any]] = defaultdict(dict)  # results per function


def _result(function: Callable[..., Any], operands: tuple[int, ...]) -> int | bool:
    known = _KNOWN[function]
    if operands not in known:
        result = function(*[VALUES[number] for number in operands])
        known[operands] = result if isinstance(result, bool) else number_of(result)
    return known[operands]


def numbers_of(operand: Any) -> Tensor:
    if isinstance(operand, ExactTensor):
        return operand.numbers
    if isinstance(operand, Tensor):
        flat = [number_of(as_number(value)) for value in operand.flatten().tolist()]
        return torch.tensor(flat, dtype=torch.int64).reshape(operand.shape)
    return torch.tensor(number_of(as_number(operand)))


def _rowwise(function: Callable[[list[Number]], list[Number]], tensor: ExactTensor, dim: int) -> ExactTensor:
    """Apply to the slices along `dim`, once per distinct slice."""
    rows = tensor.numbers.movedim(dim, -1)
    known, results = _KNOWN[function], []
    for row in rows.reshape(-1, rows.shape[-1]).tolist():
        key = tuple(row)
        if key not in known:
            known[key] = [number_of(value) for value in function([VALUES[number] for number in row])]
        results.append(known[key])
    shape = (*rows.shape[:-1], len(results[0]) if results else 0)
    return ExactTensor(torch.tensor(results, dtype=torch.int64).reshape(shape).movedim(-1, dim).contiguous())


def _reduce_sum(tensor: ExactTensor, dims: Any = None, keepdim: bool = False, **_: Any) -> Tensor:
    dims = list(range(tensor.dim())) if not dims else [dim % tensor.dim() for dim in dims]
    for dim in dims:
        tensor = _rowwise(sum_of, tensor, dim)
    return tensor if keepdim else ExactTensor(tensor.numbers.squeeze(tuple(dims)))


def _ranks(tensor: ExactTensor) -> Tensor:
    """Integers in the same order as the elements, equal where they are."""
    distinct, places = tensor.numbers.unique(return_inverse=True)
    by_value = cmp_to_key(lambda i, j: compare(VALUES[distinct[i]], VALUES[distinct[j]]))
    order = sorted(range(len(distinct)), key=by_value)
    ranks = torch.zeros(len(distinct), dtype=torch.int64)
    for before, after in pairwise(order):
        ranks[after] = ranks[before] + bool(compare(VALUES[distinct[before]], VALUES[distinct[after]]))
    return ranks[places].reshape(tensor.numbers.shape)


def _ordered(func: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run an operation that compares on the ranks, then fetch the elements that it took."""
    tensor, ranks = args[0], _ranks(args[0])
    result = func(ranks, *args[1:], **kwargs)
    if isinstance(result, Tensor):
        return result if name.startswith("arg") else ExactTensor(_by_rank(tensor, ranks)[result])
    values, indices = result
    return ExactTensor(_by_rank(tensor, ranks)[values]), indices


def _by_rank(tensor: ExactTensor, ranks: Tensor) -> Tensor:
    return torch.zeros(int(ranks.max()) + 1, dtype=torch.int64).scatter(0, ranks.flatten(), tensor.numbers.flatten())


# --- dispatch ---------------------------------------------------------------------------------------------------------

_MOVE_NAMES = """
    gather index index_select select slice view _unsafe_view expand unsqueeze squeeze permute transpose t cat stack
    clone detach alias repeat where masked_fill scatter index_put copy flip roll constant_pad_nd unbind split chunk
    split_with_sizes unfold lift_fresh as_strided tril triu fill masked_scatter take_along_dim reshape
"""
_MOVES = frozenset(_MOVE_NAMES.split())
_VALUE_ARGUMENT = {"masked_fill": 2, "scatter": 3, "constant_pad_nd": 2, "fill": 1}
_CONSTANTS = {"zeros_like": 0, "ones_like": 1, "empty_like": 0, "new_zeros": 0, "new_ones": 1, "new_empty": 0}


def _dispatch(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    name = func._schema.name.split("::")[1]
    in_place = name.endswith("_")
    name = name.rstrip("_") if in_place else name
    result = _compute(func, name, list(args), kwargs, in_place)
    if in_place and name not in _MOVES:
        args[0].numbers.copy_(result.numbers)
    return args[0] if in_place else result


def _compute(func: Any, name: str, args: list[Any], kwargs: dict[str, Any], in_place: bool) -> Any:
    if name in ARITHMETIC and kwargs.get("alpha", 1) == 1 and "rounding_mode" not in kwargs:
        return _elementwise(ARITHMETIC[name], *args)
    if name in _CONSTANTS or name in ("full_like", "new_full"):
        return _constant(func, name, args, kwargs)
    if name in _MOVES:
        return _move(func, name, args, kwargs)
    if name in ("max", "min", "amax", "amin", "argmax", "argmin", "topk", "sort", "argsort") and len(args) > 0:
        return _ordered(func, name, args, kwargs)
    if name in _ROWS:
        return _ROWS[name](*args, **kwargs)
    if name == "_local_scalar_dense":
        return float(VALUES[int(args[0].numbers)])
    if in_place:
        raise NotImplementedError(f"{func} has no exact form")
    plain = tree_map(lambda a: a.floats() if isinstance(a, ExactTensor) else a, (tuple(args), kwargs))
    return func(*plain[0], **plain[1])


def _clamp(tensor: Tensor, low: Any = None, high: Any = None, **bounds: Any) -> Tensor:
    low, high = bounds.get("min", low), bounds.get("max", high)
    tensor = tensor if low is None else _elementwise(ARITHMETIC["clamp_min"], tensor, low)
    return tensor if high is None else _elementwise(ARITHMETIC["clamp_max"], tensor, high)


def _cast(tensor: ExactTensor, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    if dtype is None or dtype.is_floating_point:
        return ExactTensor(tensor.numbers.clone(), dtype or tensor.dtype)
    return tensor.floats().to(dtype)


def _replace_nan(tensor: Tensor, nan: float = 0.0, **_: Any) -> Tensor:
    return _elementwise(_zero_if_nan if nan == 0 else lambda a: as_number(nan) if a != a else a, tensor)


def _zero_if_nan(value: Number) -> Number:
    return Fraction(0) if value != value else value


def _log_softmax_of(row: list[Number]) -> list[Number]:
    return [log_of(p) for p in softmax_of(row)]


_ROWS: dict[str, Callable[..., Any]] = {
    "sum": _reduce_sum,
    "cumsum": lambda tensor, dim, **_: _rowwise(cumsum_of, tensor, dim),
    "_softmax": lambda tensor, dim, *_: _rowwise(softmax_of, tensor, dim),
    "_log_softmax": lambda tensor, dim, *_: _rowwise(_log_softmax_of, tensor, dim),
    "clamp": _clamp,
    "nan_to_num": _replace_nan,
    "_to_copy": _cast,
}


def _constant(func: Any, name: str, args: list[Any], kwargs: dict[str, Any]) -> Tensor:
    value = args.pop() if name in ("full_like", "new_full") else _CONSTANTS[name]
    dtype = kwargs.pop("dtype", None)
    shape = args[1] if name.startswith("new_") else args[0].shape
    if dtype is not None and not dtype.is_floating_point:
        return torch.full(tuple(shape), value, dtype=dtype)
    return ExactTensor(torch.full(tuple(shape), number_of(as_number(value)), dtype=torch.int64))


def _move(func: Any, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
    place = _VALUE_ARGUMENT.get(name)
    if place is not None and not isinstance(args[place] if place < len(args) else 0.0, Tensor):
        args[place:] = [int(numbers_of(args[place] if place < len(args) else 0))]

    def convert(a: Any) -> Any:
        return numbers_of(a) if isinstance(a, Tensor) and (isinstance(a, ExactTensor) or a.is_floating_point()) else a

    result = func(*tree_map(convert, args), **tree_map(convert, kwargs))
    return tree_map(lambda a: ExactTensor(a) if isinstance(a, Tensor) else a, result)

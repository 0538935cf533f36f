"""A float tensor whose elements are exact: fractions, or logarithms of fractions.

Elements are numbers of a pool, so that an operation that only moves data runs on the numbers and arithmetic is done
once per distinct operands. What cannot be done exactly becomes an ordinary float, which `is_exact` tells apart.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cmp_to_key
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map


@dataclass(frozen=True)
class Log:
    """The logarithm of a fraction; of 0 for -inf."""

    of: Fraction

    def __float__(self) -> float:
        return math.log(self.of) if self.of else -math.inf


Number = Fraction | Log | float  # a float is an inexact number, or nan or +inf

_VALUES: list[Number] = []
_NUMBERS: dict[object, int] = {}


def _number(value: Any) -> int:
    if isinstance(value, float) and value == -math.inf:
        value = Log(Fraction(0))
    key = (type(value), str(value)) if isinstance(value, float) else value
    if key not in _NUMBERS:
        _NUMBERS[key] = len(_VALUES)
        _VALUES.append(value)
    return _NUMBERS[key]


def _exact(value: Any) -> Any:
    """A Python number, or an element of an ordinary tensor, taken at face value."""
    return Fraction(value) if isinstance(value, (int, float)) and math.isfinite(value) else float(value)


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
        flat[:] = [_VALUES[number] for number in self.numbers.flatten().tolist()]
        return flat.reshape(self.numbers.shape)

    def floats(self) -> Tensor:
        flat = [float(_VALUES[number]) for number in self.numbers.flatten().tolist()]
        return torch.tensor(flat, dtype=self.dtype).reshape(self.numbers.shape)

    def tolist(self) -> Any:
        return self.floats().tolist()

    def __repr__(self, **_: Any) -> str:
        return f"ExactTensor({self.values().tolist()})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


def exact(values: Any) -> ExactTensor:
    """From nested lists or an array of numbers."""
    array = np.asarray(values, dtype=object)
    numbers = [_number(value if isinstance(value, Log) else _exact_or_fraction(value)) for value in array.flat]
    return ExactTensor(torch.tensor(numbers, dtype=torch.int64).reshape(array.shape))


def _exact_or_fraction(value: Any) -> Any:
    return value if isinstance(value, Fraction) else _exact(value)


def exact_logs(probs: Any) -> ExactTensor:
    """The logarithms of fractions, as logits or log-probabilities."""
    array = np.asarray(probs, dtype=object)
    numbers = [number_of_log(Fraction(value)) for value in array.flat]
    return ExactTensor(torch.tensor(numbers, dtype=torch.int64).reshape(array.shape))


def number_of_log(prob: Fraction) -> int:
    return _number(Log(prob))


def is_exact(tensor: Tensor) -> bool:
    """Whether every element is a fraction."""
    if not isinstance(tensor, ExactTensor):
        return False
    return all(isinstance(_VALUES[number], Fraction) for number in tensor.numbers.unique().tolist())


# --- arithmetic -------------------------------------------------------------------------------------------------------


def _as_log(value: Number) -> Number:
    return Log(Fraction(1)) if value == 0 and isinstance(value, Fraction) else value


def _add(a: Number, b: Number) -> Number:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a + b
    a, b = _as_log(a), _as_log(b)
    return Log(a.of * b.of) if isinstance(a, Log) and isinstance(b, Log) else float(a) + float(b)


def _sub(a: Number, b: Number) -> Number:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a - b
    a, b = _as_log(a), _as_log(b)
    if isinstance(a, Log) and isinstance(b, Log) and b.of:
        return Log(a.of / b.of)
    return float(a) - float(b)


def _mul(a: Number, b: Number) -> Number:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a * b
    a, b = (b, a) if isinstance(b, Log) else (a, b)
    if isinstance(a, Log) and isinstance(b, Fraction) and b.denominator == 1 and (a.of or b > 0):
        return Log(a.of**b.numerator)
    return float(a) * float(b)


def _div(a: Number, b: Number) -> Number:
    if isinstance(b, Fraction):
        if b:
            return _mul(a, 1 / b)
        return math.nan if a == 0 or a != a else math.inf
    return math.nan if float(b) == 0 else float(a) / float(b)


def _exp(a: Number) -> Number:
    a = _as_log(a)
    return a.of if isinstance(a, Log) else math.exp(float(a))


def _log(a: Number) -> Number:
    return Log(a) if isinstance(a, Fraction) and a >= 0 else math.log(float(a))


def _abs(a: Number) -> Number:
    return abs(a) if isinstance(a, Fraction) else abs(float(a))


def _compare(a: Number, b: Number) -> int:
    """-1, 0 or 1; nan is the largest, as in torch's order."""
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return (a > b) - (a < b)
    a, b = _as_log(a), _as_log(b)
    if isinstance(a, Log) and isinstance(b, Log):
        return (a.of > b.of) - (a.of < b.of)
    if a != a or b != b:
        return int(a != a) - int(b != b)
    return (float(a) > float(b)) - (float(a) < float(b))


def _comparison(test: Callable[[int], bool], if_nan: bool = False) -> Callable[[Number, Number], bool]:
    return lambda a, b: if_nan if a != a or b != b else test(_compare(a, b))


_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": _add, "sub": _sub, "rsub": lambda a, b: _sub(b, a), "mul": _mul, "div": _div,
    "neg": lambda a: _sub(Fraction(0), a), "exp": _exp, "log": _log, "log1p": lambda a: _log(_add(Fraction(1), a)),
    "abs": _abs, "relu": lambda a: a if _compare(a, Fraction(0)) > 0 else Fraction(0),
    "clamp_min": lambda a, b: b if _compare(a, b) < 0 else a, "clamp_max": lambda a, b: b if _compare(a, b) > 0 else a,
    "maximum": lambda a, b: b if _compare(a, b) < 0 else a, "minimum": lambda a, b: b if _compare(a, b) > 0 else a,
    "lt": _comparison(lambda c: c < 0), "le": _comparison(lambda c: c <= 0),
    "gt": _comparison(lambda c: c > 0), "ge": _comparison(lambda c: c >= 0),
    "eq": _comparison(lambda c: c == 0), "ne": _comparison(lambda c: c != 0, if_nan=True),
    "isnan": lambda a: a != a,
}  # fmt: skip


def _elementwise(function: Callable[..., Any], *operands: Any) -> Tensor:
    """Once per distinct operands; the result is exact numbers, or bools for a comparison."""
    arrays = np.broadcast_arrays(*[_numbers(operand).numpy() for operand in operands])
    keys = arrays[0].astype(np.int64)
    for array in arrays[1:]:
        keys = keys * len(_VALUES) + array
    distinct, first, places = np.unique(keys, return_index=True, return_inverse=True)
    results = [function(*[_VALUES[array.flat[place]] for array in arrays]) for place in first]
    if results and isinstance(results[0], bool):
        return torch.from_numpy(np.array(results)[places].reshape(keys.shape))
    numbers = np.array([_number(result) for result in results], dtype=np.int64)
    return ExactTensor(torch.from_numpy(numbers[places].reshape(keys.shape)))


def _numbers(operand: Any) -> Tensor:
    if isinstance(operand, ExactTensor):
        return operand.numbers
    if isinstance(operand, Tensor):
        flat = [_number(_exact(value)) for value in operand.flatten().tolist()]
        return torch.tensor(flat, dtype=torch.int64).reshape(operand.shape)
    return torch.tensor(_number(_exact(operand)))


# --- whole rows -------------------------------------------------------------------------------------------------------


def _sum(values: list[Number]) -> list[Number]:
    total: Number = Fraction(0)
    for value in values:
        total = _add(total, value)
    return [total]


def _cumsum(values: list[Number]) -> list[Number]:
    sums: list[Number] = []
    for value in values:
        sums.append(_add(sums[-1], value) if sums else value)
    return sums


def _softmax(values: list[Number]) -> list[Number]:
    weights = [_exp(value) for value in values]
    [total] = _sum(weights)
    return [_div(weight, total) if total != 0 else math.nan for weight in weights]


def _rowwise(function: Callable[[list[Number]], list[Number]], tensor: ExactTensor, dim: int) -> ExactTensor:
    """Apply to the slices along `dim`, once per distinct slice."""
    rows = tensor.numbers.movedim(dim, -1)
    known: dict[tuple[int, ...], list[int]] = {}
    results = []
    for row in rows.reshape(-1, rows.shape[-1]).tolist():
        key = tuple(row)
        if key not in known:
            known[key] = [_number(value) for value in function([_VALUES[number] for number in row])]
        results.append(known[key])
    shape = (*rows.shape[:-1], len(results[0]) if results else 0)
    return ExactTensor(torch.tensor(results, dtype=torch.int64).reshape(shape).movedim(-1, dim).contiguous())


def _reduce_sum(tensor: ExactTensor, dims: Any = None, keepdim: bool = False, **_: Any) -> Tensor:
    dims = list(range(tensor.dim())) if not dims else [dim % tensor.dim() for dim in dims]
    for dim in dims:
        tensor = _rowwise(_sum, tensor, dim)
    return tensor if keepdim else ExactTensor(tensor.numbers.squeeze(tuple(dims)))


def _ranks(tensor: ExactTensor) -> Tensor:
    """Integers in the same order as the elements, equal where they are."""
    distinct, places = tensor.numbers.unique(return_inverse=True)
    order = sorted(
        range(len(distinct)), key=cmp_to_key(lambda i, j: _compare(_VALUES[distinct[i]], _VALUES[distinct[j]]))
    )
    ranks = torch.zeros(len(distinct), dtype=torch.int64)
    for before, after in zip(order, order[1:], strict=False):
        ranks[after] = ranks[before] + bool(_compare(_VALUES[distinct[before]], _VALUES[distinct[after]]))
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

_MOVES = frozenset(
    [
        "gather",
        "index",
        "index_select",
        "select",
        "slice",
        "view",
        "_unsafe_view",
        "expand",
        "unsqueeze",
        "squeeze",
        "permute",
        "transpose",
        "t",
        "cat",
        "stack",
        "clone",
        "detach",
        "alias",
        "repeat",
        "where",
        "masked_fill",
        "scatter",
        "index_put",
        "copy",
        "flip",
        "roll",
        "constant_pad_nd",
        "unbind",
        "split",
        "chunk",
        "split_with_sizes",
        "unfold",
        "lift_fresh",
        "as_strided",
        "tril",
        "triu",
        "fill",
        "masked_scatter",
        "take_along_dim",
        "reshape",
        "new_empty",
    ]
)
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
    if name in _ARITHMETIC and kwargs.get("alpha", 1) == 1 and "rounding_mode" not in kwargs:
        return _elementwise(_ARITHMETIC[name], *args)
    if name in _CONSTANTS or name in ("full_like", "new_full"):
        return _constant(func, name, args, kwargs)
    if name in _MOVES:
        return _move(func, name, args, kwargs)
    if name in ("max", "min", "amax", "amin", "argmax", "argmin", "topk", "sort", "argsort") and len(args) > 0:
        return _ordered(func, name, args, kwargs)
    if name in _ROWS:
        return _ROWS[name](*args, **kwargs)
    if name == "_local_scalar_dense":
        return float(_VALUES[int(args[0].numbers)])
    if in_place:
        raise NotImplementedError(f"{func} has no exact form")
    plain = tree_map(lambda a: a.floats() if isinstance(a, ExactTensor) else a, (tuple(args), kwargs))
    return func(*plain[0], **plain[1])


def _clamp(tensor: Tensor, low: Any = None, high: Any = None, **bounds: Any) -> Tensor:
    low, high = bounds.get("min", low), bounds.get("max", high)
    tensor = tensor if low is None else _elementwise(_ARITHMETIC["clamp_min"], tensor, low)
    return tensor if high is None else _elementwise(_ARITHMETIC["clamp_max"], tensor, high)


def _cast(tensor: ExactTensor, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    if dtype is None or dtype.is_floating_point:
        return ExactTensor(tensor.numbers.clone(), dtype or tensor.dtype)
    return tensor.floats().to(dtype)


def _replace_nan(tensor: Tensor, nan: float = 0.0, **_: Any) -> Tensor:
    return _elementwise(lambda a: _exact(nan) if a != a else a, tensor)


_ROWS: dict[str, Callable[..., Any]] = {
    "sum": _reduce_sum,
    "cumsum": lambda tensor, dim, **_: _rowwise(_cumsum, tensor, dim),
    "_softmax": lambda tensor, dim, *_: _rowwise(_softmax, tensor, dim),
    "_log_softmax": lambda tensor, dim, *_: _rowwise(lambda row: [_log(p) for p in _softmax(row)], tensor, dim),
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
    return ExactTensor(torch.full(tuple(shape), _number(_exact(value)), dtype=torch.int64))


def _move(func: Any, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
    place = _VALUE_ARGUMENT.get(name)
    if place is not None and not isinstance(args[place] if place < len(args) else 0.0, Tensor):
        args[place:] = [int(_numbers(args[place] if place < len(args) else 0))]

    def convert(a: Any) -> Any:
        return _numbers(a) if isinstance(a, Tensor) and (isinstance(a, ExactTensor) or a.is_floating_point()) else a

    result = func(*tree_map(convert, args), **tree_map(convert, kwargs))
    return tree_map(lambda a: ExactTensor(a) if isinstance(a, Tensor) else a, result)


class ExactFactories(TorchDispatchMode):
    """Within it, zeros, ones and constants are born exact, so that exact elements can be stored in them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        is_factory = func._schema.name in ("aten::zeros", "aten::ones", "aten::full", "aten::empty", "aten::new_zeros")
        return (
            ExactTensor(_numbers(made))
            if is_factory and made.is_floating_point() and not isinstance(made, ExactTensor)
            else made
        )

"""Exact numbers: fractions and logarithms of fractions, each with a number of its own in a pool.

What cannot be done exactly becomes an ordinary float.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any


@dataclass(frozen=True)
class Log:
    """The logarithm of a fraction; of 0 for -inf."""

    of: Fraction

    def __float__(self) -> float:
        return math.log(self.of) if self.of else -math.inf


Number = Fraction | Log | float  # a float is an inexact number, or nan or +inf

VALUES: list[Number] = []
NUMBERS: dict[object, int] = {}


def number_of(value: Any) -> int:
    if isinstance(value, float) and value == -math.inf:
        value = Log(Fraction(0))
    key = (type(value), str(value)) if isinstance(value, float) else value
    if key not in NUMBERS:
        NUMBERS[key] = len(VALUES)
        VALUES.append(value)
    return NUMBERS[key]


def fraction(number: int) -> Fraction:
    value = VALUES[number]
    assert isinstance(value, Fraction)
    return value


def as_number(value: Any) -> Any:
    """A Python number, or an element of an ordinary tensor, taken at face value."""
    return Fraction(value) if isinstance(value, (int, float)) and math.isfinite(value) else float(value)


def number_of_log(prob: Fraction) -> int:
    return number_of(Log(prob))


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


def log_of(a: Number) -> Number:
    return Log(a) if isinstance(a, Fraction) and a >= 0 else math.log(float(a))


def _abs(a: Number) -> Number:
    return abs(a) if isinstance(a, Fraction) else abs(float(a))


def compare(a: Number, b: Number) -> int:
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
    return lambda a, b: if_nan if a != a or b != b else test(compare(a, b))


ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": _add, "sub": _sub, "rsub": lambda a, b: _sub(b, a), "mul": _mul, "div": _div,
    "neg": lambda a: _sub(Fraction(0), a), "exp": _exp, "log": log_of, "log1p": lambda a: log_of(_add(Fraction(1), a)),
    "abs": _abs, "relu": lambda a: a if compare(a, Fraction(0)) > 0 else Fraction(0),
    "clamp_min": lambda a, b: b if compare(a, b) < 0 else a, "clamp_max": lambda a, b: b if compare(a, b) > 0 else a,
    "maximum": lambda a, b: b if compare(a, b) < 0 else a, "minimum": lambda a, b: b if compare(a, b) > 0 else a,
    "lt": _comparison(lambda c: c < 0), "le": _comparison(lambda c: c <= 0),
    "gt": _comparison(lambda c: c > 0), "ge": _comparison(lambda c: c >= 0),
    "eq": _comparison(lambda c: c == 0), "ne": _comparison(lambda c: c != 0, if_nan=True),
    "isnan": lambda a: a != a,
}  # fmt: skip


def sum_of(values: list[Number]) -> list[Number]:
    total: Number = Fraction(0)
    for value in values:
        total = _add(total, value)
    return [total]


def cumsum_of(values: list[Number]) -> list[Number]:
    sums: list[Number] = []
    for value in values:
        sums.append(_add(sums[-1], value) if sums else value)
    return sums


def softmax_of(values: list[Number]) -> list[Number]:
    weights = [_exp(value) for value in values]
    [total] = sum_of(weights)
    return [_div(weight, total) if total != 0 else math.nan for weight in weights]

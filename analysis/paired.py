"""Is one method faster than another? Ratio of their speedups over the prompts that both decoded."""

from functools import lru_cache
from statistics import median
from typing import NamedTuple

import numpy

from runners.records import RunRecord, Unit

MIN_PROMPTS = 5  # as many as a point's own interval needs
NUM_RESAMPLES = 1999
SEED = 20240229
TAIL = 0.025


class Paired(NamedTuple):
    """`ratio` of speedups, second over first; its 95 % percentile bootstrap over shared units, None with too few."""

    ratio: float
    low: float | None
    high: float | None
    num_units: int

    @property
    def verdict(self) -> str:
        """faster, slower, or not told apart."""
        if self.low is None or self.high is None:
            return "too few prompts"
        return "faster" if self.low > 1 else "slower" if self.high < 1 else "no difference"


def compare_points(first: RunRecord, second: RunRecord) -> Paired | None:
    """None without a shared unit. Both are measured against baselines of their own, so a slower machine cancels."""
    mine, theirs = _by_prompts(first), _by_prompts(second)
    shared = sorted(set(mine) & set(theirs))
    if not shared:
        return None
    columns = numpy.array([[mine[key], theirs[key]] for key in shared])  # unit, record, column
    ratio = float(_ratio(columns.sum(0)))
    if len(shared) < MIN_PROMPTS:
        return Paired(ratio, None, None, len(shared))
    sums = _resamples(len(shared)) @ columns.reshape(len(shared), -1)
    low, high = numpy.quantile(_ratio(sums.reshape(NUM_RESAMPLES, *columns.shape[1:])), [TAIL, 1 - TAIL])
    return Paired(ratio, float(low), float(high), len(shared))


@lru_cache(maxsize=8)
def _resamples(num_units: int) -> numpy.ndarray:
    """How often each resample holds each unit (resample, unit)."""
    generator = numpy.random.default_rng(SEED)
    return generator.multinomial(num_units, [1 / num_units] * num_units, size=NUM_RESAMPLES).astype(float)


def _by_prompts(record: RunRecord) -> dict[tuple, list[float]]:
    """Timed units by the prompts they hold: seconds are medians over repeats."""
    return {key: _columns(unit) for unit in record.units if (key := _prompts(record, unit)) and _is_timed(unit)}


def _prompts(record: RunRecord, unit: Unit) -> tuple:
    known = len(record.prompts)
    return tuple((record.prompts[i].id, record.prompts[i].turn) for i in unit.sequences if i < known)


def _columns(unit: Unit) -> list[float]:
    """Baseline seconds and tokens, then the method's."""
    seconds = median(unit.baseline_seconds), median(unit.seconds)
    return [float(seconds[0]), float(unit.baseline_new_tokens), float(seconds[1]), float(unit.new_tokens)]


def _is_timed(unit: Unit) -> bool:
    seconds = [*unit.seconds, *unit.baseline_seconds]
    complete = bool(unit.seconds and unit.baseline_seconds and unit.new_tokens and unit.baseline_new_tokens)
    return complete and all(second > 0 for second in seconds)


def _ratio(sums: numpy.ndarray) -> numpy.ndarray:
    """Of sums over units (..., record, column)."""
    baseline_seconds, baseline_tokens, seconds, tokens = numpy.moveaxis(sums, -1, 0)
    speedup = (baseline_seconds / baseline_tokens) / (seconds / tokens)
    return numpy.asarray(speedup[..., 1] / speedup[..., 0])

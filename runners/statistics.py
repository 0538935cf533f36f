"""What a point's raw timings say: speedups with an interval, rates, acceptance lengths. Pure functions of records."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy
from scipy.stats import bootstrap

from runners.records import PromptRecord, Unit

MIN_UNITS = 5  # 126 distinct resamples; with fewer, each 2.5 % tail rests on less than one of them
NUM_RESAMPLES = 9999
BOOTSTRAP_SEED = 20240229


class SpeedupSummary(NamedTuple):
    """Baseline over method, so 2.0 is twice as fast. A figure that cannot be computed is None and `note` says why."""

    speedup: float | None  # of seconds per token, each the sum of medians over repeats
    low: float | None  # 95 % paired BCa bootstrap over units
    high: float | None
    median_of_pairs: float | None  # over all units and repeats
    of_totals: float | None  # of seconds per token, every repeat summed
    spec_bench: float | None  # of mean rates, prefill included
    spec_bench_encoded: float | None  # the same with the baseline's tokens counted as Spec-Bench's script does
    note: str  # units left out, why there is no interval; empty when all went well


class Rates(NamedTuple):
    """Decode tokens per second; their ratio is the speedup."""

    method: float | None
    baseline: float | None


class AcceptanceLength(NamedTuple):
    """Tokens emitted per verification step, bonus included; plain decoding has 1.0."""

    micro: float | None  # all tokens / all steps
    macro: float | None  # mean over prompts
    low: float | None = None  # of micro: 95 % BCa bootstrap over prompts
    high: float | None = None


def speedup_summary(units: Sequence[Unit], prompts: Sequence[PromptRecord] = ()) -> SpeedupSummary:
    """All speedups of one point. Units without tokens or with a time that is not positive are left out and counted.

    With `prompts` the turns of a question are one question in Spec-Bench's figures.
    """
    kept = [unit for unit in units if _is_timed(unit)]
    notes = [] if len(kept) == len(units) else [f"{len(units) - len(kept)} of {len(units)} units left out: not timed"]
    if not kept:
        return SpeedupSummary(
            None, None, None, None, None, None, None, "; ".join([*notes, "no speedup: no timed unit"])
        )
    medians = _medians(kept)
    low, high, reason = _interval(medians, _ratio)
    questions = _questions(kept, prompts)
    return SpeedupSummary(
        speedup=_speedup(*medians),
        low=low,
        high=high,
        median_of_pairs=median(_paired_ratios(kept)),
        of_totals=_speedup(*_totals(kept)),
        spec_bench=_spec_bench([question.unit for question in questions]),
        spec_bench_encoded=_spec_bench_encoded(questions),
        note="; ".join([*notes, reason] if reason else notes),
    )


def token_rates(units: Sequence[Unit]) -> Rates:
    """Tokens over the sum of median seconds, of the same units that `speedup_summary` uses."""
    kept = [unit for unit in units if _is_timed(unit)]
    if not kept:
        return Rates(None, None)
    baseline_seconds, baseline_tokens, seconds, tokens = (float(values.sum()) for values in _medians(kept))
    return Rates(tokens / seconds, baseline_tokens / baseline_seconds)


def acceptance_length(prompts: Sequence[PromptRecord]) -> AcceptanceLength:
    """Prompts that needed no step are left out."""
    stepped = [prompt for prompt in prompts if prompt.steps > 0]
    if not stepped:
        return AcceptanceLength(None, None)
    tokens, steps = (numpy.array([getattr(prompt, name) for prompt in stepped]) for name in ("new_tokens", "steps"))
    low, high, _ = _interval((tokens, steps), _per_step)
    return AcceptanceLength(float(tokens.sum() / steps.sum()), fmean(tokens / steps), low, high)


def identical_rate(prompts: Sequence[PromptRecord]) -> float | None:
    """Share of prompts whose token ids equal the baseline's."""
    return fmean(prompt.identical for prompt in prompts) if prompts else None


def _is_timed(unit: Unit) -> bool:
    seconds = [*unit.seconds, *unit.baseline_seconds]
    paired = len(unit.seconds) == len(unit.baseline_seconds) > 0
    return paired and unit.new_tokens > 0 and unit.baseline_new_tokens > 0 and all(0 < s < numpy.inf for s in seconds)


def _columns(units: Sequence[Unit], reduce: Callable[[Sequence[float]], float], times_repeats: bool) -> tuple:
    """One array each: baseline seconds, baseline tokens, method seconds, method tokens."""
    repeats = [len(unit.seconds) if times_repeats else 1 for unit in units]
    return (
        numpy.array([reduce(unit.baseline_seconds) for unit in units]),
        numpy.array([unit.baseline_new_tokens * n for unit, n in zip(units, repeats, strict=True)]),
        numpy.array([reduce(unit.seconds) for unit in units]),
        numpy.array([unit.new_tokens * n for unit, n in zip(units, repeats, strict=True)]),
    )


def _medians(units: Sequence[Unit]) -> tuple:
    return _columns(units, median, times_repeats=False)


def _totals(units: Sequence[Unit]) -> tuple:
    return _columns(units, sum, times_repeats=True)


def _ratio(baseline_seconds, baseline_tokens, seconds, tokens, axis=-1):
    baseline = baseline_seconds.sum(axis) / baseline_tokens.sum(axis)
    return baseline / (seconds.sum(axis) / tokens.sum(axis))


def _speedup(baseline_seconds, baseline_tokens, seconds, tokens) -> float:
    return float(_ratio(baseline_seconds, baseline_tokens, seconds, tokens))


def _paired_ratios(units: Sequence[Unit]) -> list[float]:
    return [
        (baseline / unit.baseline_new_tokens) / (seconds / unit.new_tokens)
        for unit in units
        for baseline, seconds in zip(unit.baseline_seconds, unit.seconds, strict=True)
    ]


class _Question(NamedTuple):
    """Its turns as one unit, and how many tokens the baseline's text has when it is encoded anew, less the first."""

    unit: Unit
    encoded_tokens: int | None


def _questions(units: Sequence[Unit], prompts: Sequence[PromptRecord]) -> list[_Question]:
    """A batch of several sequences stays what it is: Spec-Bench knows no batches."""
    groups: dict[object, list[Unit]] = {}
    for index, unit in enumerate(units):
        known = len(unit.sequences) == 1 and unit.sequences[0] < len(prompts)
        groups.setdefault(prompts[unit.sequences[0]].id if known else index, []).append(unit)
    return [_Question(_merged(turns), _encoded_tokens(turns, prompts)) for turns in groups.values()]


def _merged(turns: Sequence[Unit]) -> Unit:
    def total(name: str) -> list[float]:
        return [sum(seconds) for seconds in zip(*(getattr(turn, name) for turn in turns), strict=False)]

    return Unit(
        sequences=[sequence for turn in turns for sequence in turn.sequences],
        new_tokens=sum(turn.new_tokens for turn in turns),
        baseline_new_tokens=sum(turn.baseline_new_tokens for turn in turns),
        steps=sum(turn.steps for turn in turns),
        seconds=total("seconds"),
        baseline_seconds=total("baseline_seconds"),
        prefill_seconds=total("prefill_seconds"),
        baseline_prefill_seconds=total("baseline_prefill_seconds"),
    )


def _encoded_tokens(turns: Sequence[Unit], prompts: Sequence[PromptRecord]) -> int | None:
    sequences = [sequence for turn in turns for sequence in turn.sequences]
    counts = [prompts[sequence].baseline_encoded_tokens if sequence < len(prompts) else None for sequence in sequences]
    return None if None in counts else sum(count - 1 for count in counts if count is not None)


def _spec_bench_encoded(questions: Sequence[_Question]) -> float | None:
    """None where a count is missing or is no token at all."""
    units = [replace(q.unit, baseline_new_tokens=q.encoded_tokens) for q in questions if q.encoded_tokens]
    return _spec_bench(units) if len(units) == len(questions) else None


def _spec_bench(units: Sequence[Unit]) -> float:
    """Mean of per-unit rates over mean of per-unit baseline rates, prefill in the time, averaged over repeats.

    Spec-Bench's formula (Xia et al., 2024) with one token counter for both sides: its own counts the baseline's
    tokens by encoding the text again, which favours the method.
    """
    repeats = min(len(unit.seconds) for unit in units)
    return fmean(_mean_rate_ratio(units, repeat) for repeat in range(repeats))


def _mean_rate_ratio(units: Sequence[Unit], repeat: int) -> float:
    def rate(tokens: int, seconds: list[float], prefill: list[float]) -> float:
        return tokens / (seconds[repeat] + (prefill[repeat] if repeat < len(prefill) else 0.0))

    method = fmean(rate(u.new_tokens, u.seconds, u.prefill_seconds) for u in units)
    return method / fmean(rate(u.baseline_new_tokens, u.baseline_seconds, u.baseline_prefill_seconds) for u in units)


def _per_step(tokens, steps, axis=-1):
    return tokens.sum(axis) / steps.sum(axis)


def _interval(columns: tuple, statistic: Callable[..., Any]) -> tuple[float | None, float | None, str]:
    """Low, high, and the reason where there is none; the columns have an entry per unit."""
    if len(columns[0]) < MIN_UNITS:
        return None, None, f"no interval: {len(columns[0])} units, {MIN_UNITS} are needed"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # degenerate data warn and give NaN, which is handled below
        with numpy.errstate(all="ignore"):
            low, high = _bootstrap(columns, statistic)
    if not (numpy.isfinite(low) and numpy.isfinite(high)):
        return None, None, "no interval: the units do not vary"
    return low, high, ""


def _bootstrap(columns: tuple, statistic: Callable[..., Any]) -> tuple[float, float]:
    generator = numpy.random.default_rng(BOOTSTRAP_SEED)
    result = bootstrap(
        columns, statistic, paired=True, vectorized=True, method="BCa", n_resamples=NUM_RESAMPLES, rng=generator
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)

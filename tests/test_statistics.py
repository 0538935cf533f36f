"""Speedups and acceptance lengths against answers worked out by hand."""

import numpy
import pytest

from runners.records import PromptRecord, Unit
from runners.statistics import (
    MIN_UNITS,
    acceptance_length,
    identical_rate,
    speedup_summary,
    token_rates,
)


def unit(seconds, baseline_seconds, tokens=10, baseline_tokens=10, prefill=(), baseline_prefill=()) -> Unit:
    times = [list(map(float, values)) for values in (seconds, baseline_seconds, prefill, baseline_prefill)]
    return Unit([0], tokens, baseline_tokens, 5, *times)


def prompt(tokens: int, steps: int, identical: bool = True) -> PromptRecord:
    return PromptRecord("p", "c", 0, 7, tokens, steps, identical, None)


def interval(units: list[Unit]) -> tuple[float, float]:
    summary = speedup_summary(units)
    assert summary.low is not None
    assert summary.high is not None
    return summary.low, summary.high


def noisy_units(count: int, speedup: float = 2.0, seed: int = 0) -> list[Unit]:
    random = numpy.random.default_rng(seed)
    base = random.uniform(1, 3, count)
    noise = random.uniform(0.9, 1.1, count)
    return [unit([b / speedup * n], [b]) for b, n in zip(base, noise, strict=True)]


def test_golden_speedups():
    units = [unit([1, 2, 9], [4, 6, 5]), unit([4, 4, 1], [3, 1, 2])]
    summary = speedup_summary(units)
    assert summary.speedup == pytest.approx((5 + 2) / (2 + 4))  # medians 5, 2 over 2, 4
    assert summary.of_totals == pytest.approx((15 + 6) / (12 + 9))
    assert summary.median_of_pairs == pytest.approx((0.75 + 2) / 2)  # of 4, 3, 5/9, 3/4, 1/4, 2
    assert summary.low is summary.high is None
    assert "2 units" in summary.note


def test_speedup_is_per_token_when_token_counts_differ():
    units = [unit([1], [4], tokens=10, baseline_tokens=20), unit([3], [2], tokens=30, baseline_tokens=20)]
    summary = speedup_summary(units)
    assert summary.speedup == pytest.approx((6 / 40) / (4 / 40))
    assert summary.median_of_pairs == pytest.approx(((4 / 20) / (1 / 10) + (2 / 20) / (3 / 30)) / 2)
    skewed = speedup_summary([unit([1], [4], tokens=5, baseline_tokens=20)])
    assert skewed.speedup == skewed.of_totals == pytest.approx((4 / 20) / (1 / 5))


def test_totals_weigh_units_by_their_repeats():
    summary = speedup_summary([unit([1, 1], [3, 3]), unit([2], [2])])
    assert summary.of_totals == pytest.approx((8 / 30) / (4 / 30))


def test_spec_bench_is_the_ratio_of_mean_rates_with_prefill():
    units = [unit([1], [3], prefill=[1], baseline_prefill=[1]), unit([3], [3], prefill=[1], baseline_prefill=[2])]
    method, baseline = (10 / 2 + 10 / 4) / 2, (10 / 4 + 10 / 5) / 2
    assert speedup_summary(units).spec_bench == pytest.approx(method / baseline)


def test_spec_bench_averages_the_ratios_of_repeats():
    assert speedup_summary([unit([1, 2], [2, 2])]).spec_bench == pytest.approx((2 + 1) / 2)


def test_rates_are_the_speedup():
    units = noisy_units(9)
    rates = token_rates(units)
    assert rates.method is not None
    assert rates.baseline is not None
    assert rates.baseline == pytest.approx(90 / sum(u.baseline_seconds[0] for u in units))
    assert rates.method / rates.baseline == pytest.approx(speedup_summary(units).speedup)
    assert token_rates([]) == (None, None)


def test_interval_holds_the_speedup_and_is_the_same_each_time():
    units = noisy_units(20)
    summary = speedup_summary(units)
    assert summary == speedup_summary(units)
    assert summary.note == ""
    low, high = interval(units)
    assert 1.8 < low < (summary.speedup or 0.0) < high < 2.2


def test_interval_is_paired():
    """Prompts of very different length, each exactly twice as fast but for a percent: the interval stays narrow."""
    units = [unit([length / 2 * (1.01 if length % 2 else 0.99)], [length]) for length in range(1, 40)]
    low, high = interval(units)
    assert high - low < 0.05


def test_interval_covers_the_truth_about_95_times_in_100():
    intervals = [interval(noisy_units(20, seed=seed)) for seed in range(40)]
    assert 34 <= sum(low <= 2.0 <= high for low, high in intervals) <= 40  # the noise has mean 1


@pytest.mark.parametrize(
    ("units", "words"),
    [
        ([], "no timed unit"),
        (noisy_units(MIN_UNITS - 1), f"{MIN_UNITS} are needed"),
        ([unit([1], [2])] * 8, "do not vary"),
        ([*noisy_units(8), unit([], [])], "1 of 9 units left out"),
        ([*noisy_units(8), unit([0.0], [1.0])], "1 of 9 units left out"),
        ([*noisy_units(8), unit([1.0], [1.0], tokens=0)], "1 of 9 units left out"),
        ([*noisy_units(8), unit([float("nan")], [1.0])], "1 of 9 units left out"),
        ([unit([1], [1, 2])], "no speedup"),
    ],
)
def test_what_cannot_be_computed_is_none_with_a_reason(units, words):
    summary = speedup_summary(units)
    assert words in summary.note
    assert (summary.low is None) == (summary.high is None)
    assert (summary.speedup is None) == ("no speedup" in summary.note)


def test_units_that_are_left_out_change_nothing():
    units = noisy_units(8)
    assert speedup_summary([*units, unit([], [])])[:-1] == speedup_summary(units)[:-1]


def test_acceptance_length_micro_and_macro():
    lengths = acceptance_length([prompt(30, 10), prompt(10, 10), prompt(4, 0)])
    assert lengths.micro == pytest.approx(40 / 20)
    assert lengths.macro == pytest.approx((3 + 1) / 2)
    uneven = acceptance_length([prompt(30, 10), prompt(2, 2)])
    assert (uneven.micro, uneven.macro) == (pytest.approx(32 / 12), pytest.approx(2.0))
    assert acceptance_length([]) == (None, None, None, None)


def test_acceptance_length_has_an_interval_that_holds_it_and_shrinks_with_prompts():
    rng = numpy.random.default_rng(0)
    steps = rng.integers(5, 15, 60)
    prompts = [prompt(int(n + rng.integers(0, n)), int(n)) for n in steps]
    widths = []
    for lengths in (acceptance_length(prompts[:6]), acceptance_length(prompts)):
        assert lengths.micro is not None
        assert lengths.low is not None
        assert lengths.high is not None
        assert lengths.low < lengths.micro < lengths.high
        widths.append(lengths.high - lengths.low)
    assert widths[1] < widths[0]
    assert acceptance_length(prompts[:4])[2:] == (None, None)  # too few
    assert acceptance_length([prompt(20, 10)] * 6)[2:] == (None, None)  # nothing varies


def test_identical_rate():
    assert identical_rate([prompt(1, 1), prompt(1, 1, False), prompt(1, 1), prompt(1, 1)]) == 0.75
    assert identical_rate([]) is None

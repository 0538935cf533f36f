"""Two sweeps against each other: what counts as a regression, and the exit status."""

from dataclasses import replace

import pytest

from analysis.compare import main
from analysis.paired import compare_points
from runners.records import PromptRecord, Unit
from runners.store import write_point
from tests.analysis.conftest import RECORD

PROMPTS = [PromptRecord(f"q/{i}", "code", 0, 10, 100, 50, True, None) for i in range(8)]
NOISE = [0.98, 1.01, 1.0, 1.02, 0.99, 1.0, 1.01, 0.99]


def timed(seconds: float, prompts=PROMPTS, **choices):
    """Plain decoding takes 2 s per prompt; the method `seconds`, with 2 % of noise."""
    units = [Unit([i], 100, 100, 50, [seconds * NOISE[i]], [2.0], [], []) for i in range(len(prompts))]
    return replace(RECORD, speedup=2.0 / seconds, units=units, prompts=prompts, **choices)


@pytest.fixture
def sweeps(tmp_path):
    for name in ("before", "after"):
        (tmp_path / name).mkdir()

    def add(sweep, record, name="point"):
        write_point(tmp_path / sweep / name, record, None)

    return tmp_path, add


def run(folder, capsys, *options) -> tuple[int, str, str]:
    code = main([str(folder / "before"), str(folder / "after"), *options])
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.mark.parametrize(
    ("seconds", "code", "word"),
    [(1.0, 0, "no difference"), (1.25, 1, "REGRESSED: slower"), (0.8, 0, "faster"), (1.015, 0, "slower")],
)
def test_speed(sweeps, capsys, seconds, code, word):
    folder, add = sweeps
    add("before", timed(1.0))
    add("after", timed(seconds))
    found, out, _ = run(folder, capsys)
    assert found == code
    assert word in " ".join(out.split())
    assert f"{1 / seconds:.3f}" in out
    assert ("REGRESSED" in out) == bool(code), "1.5 % is slower beyond doubt, but within the tolerance"


def test_the_ratio_is_paired_and_cancels_the_machine():
    slow_machine = timed(3.0)
    slow_machine.units = [replace(unit, baseline_seconds=[6.0]) for unit in slow_machine.units]
    found = compare_points(timed(1.0), slow_machine)
    assert found is not None
    assert found.ratio == pytest.approx(1.0)
    assert found.verdict == "no difference"
    assert found.num_units == 8


def test_only_common_prompts_are_compared():
    other = timed(1.0, [replace(prompt, id=f"q/{i + 6}") for i, prompt in enumerate(PROMPTS)])
    found = compare_points(timed(1.0), other)
    assert found is not None
    assert (found.num_units, found.low, found.verdict) == (2, None, "too few prompts")
    assert compare_points(timed(1.0), timed(1.0, [replace(prompt, turn=1) for prompt in PROMPTS])) is None


def test_failures_and_missing_points_are_regressions(sweeps, capsys):
    folder, add = sweeps
    for name in ("a", "b"):
        add("before", timed(1.0, algorithm=name, config_hash=name * 64), name)
    add(
        "after", replace(timed(1.0, algorithm="a", config_hash="a" * 64), status="failed", reason="out of\nmemory"), "a"
    )
    code, out, _ = run(folder, capsys)
    words = " ".join(out.split())
    assert code == 1
    assert "2 points, 2 regressed" in words
    assert "failed: out of memory" in words
    assert "REGRESSED: missing" in words
    assert "2 points, 1 regressed" in " ".join(run(folder, capsys, "--allow-missing")[1].split())


def test_another_output_in_full_precision_is_a_regression(sweeps, capsys):
    folder, add = sweeps
    add("before", timed(1.0))
    add("after", timed(1.0, identical_rate=0.9, config_hash="f" * 64))
    code, out, _ = run(folder, capsys)
    assert code == 1
    assert "REGRESSED: other output" in " ".join(out.split()), "matched by its choices: the hash is new"


def test_nothing_in_common_and_missing_folders_are_one_line(sweeps, capsys):
    folder, _ = sweeps
    code, _, err = run(folder, capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert "no measured point in common" in err
    assert main([str(folder / "none"), str(folder / "after")]) == 2
    assert "none: no such folder" in capsys.readouterr().err
